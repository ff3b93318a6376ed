"""A real browser for pages: headless Chromium on a local server, with everything that goes wrong on a page written down."""

import functools
import http.server
import shutil
import threading

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FREE = ("data:", "blob:", "about:")  # addresses that reach no network


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def browser():
    """One Chromium for a file of tests; without it, or without playwright, they are skipped."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with driver.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def serve():
    """A function from a folder to the local address at which it is served, until the file of tests ends."""
    servers = []

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def visit(browser):
    """A function that opens an address at a width, dark or light, as a page whose `faults` are sentences.

    They name messages of the console, errors of scripts, answers of 400 and above, and requests beyond this machine, which
    are refused.
    """
    contexts = []

    def openly(address, width=1280, dark=False):
        looks = {"viewport": {"width": width, "height": 900}, "color_scheme": "dark" if dark else "light"}
        contexts.append(browser.new_context(**looks))
        page = contexts[-1].new_page()
        page.faults = faults = []

        def asked(route):
            here = route.request.url.startswith((*FREE, "http://127.0.0.1"))
            if not here:
                faults.append(f"asks for {route.request.url}")
            return route.continue_() if here else route.abort()

        page.route("**/*", asked)
        page.on("console", lambda said: said.type in ("error", "warning") and faults.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on("response", lambda got: got.status >= 400 and faults.append(f"{got.status}: {got.url}"))
        page.goto(address, wait_until="load")
        return page

    yield openly
    for context in contexts:
        context.close()


def overflow(page):
    """How many pixels a page is wider than its window; 0 where it only scrolls down."""
    return page.evaluate("Math.max(0, document.documentElement.scrollWidth - innerWidth)")
