"""Check a built book without a network: every link leads to a file and a place in it, and no page loads anything from elsewhere.

Run as `python book/_ext/links.py book/_build/html`; prints one line for each fault and exits 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("object", "data"), ("video", "src")}
STYLE_ADDRESS = re.compile(r"(?:url\(\s*|@import\s+)['\"]?([^'\")\s;]+)")


class Reference(NamedTuple):
    """One address on a page; `loads` when a browser fetches it by itself."""

    address: str
    loads: bool


class Page(HTMLParser):
    """The addresses and the named places of one HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[Reference] = []
        self.places: set[str] = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what this tag names and where it points."""
        found = {name: value or "" for name, value in attrs}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        for name, value in found.items():
            if name == "href":
                self.references.append(Reference(value, loads=tag == "link" and fetched(found.get("rel", ""))))
            elif (tag, name) in LOADED:
                self.references.append(Reference(value, loads=True))
            elif name == "style":
                self.references.extend(Reference(address, loads=True) for address in STYLE_ADDRESS.findall(value))


def fetched(relation: str) -> bool:
    """Whether a browser fetches a `link` of this relation without being asked."""
    return bool({"stylesheet", "icon", "preload", "prefetch", "modulepreload", "shortcut"} & set(relation.split()))


def outside(address: str) -> bool:
    """Whether an address leaves the book."""
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("http", "https", "ftp")


def faults(root: Path) -> Iterator[str]:
    """One sentence for each broken link and each thing loaded from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in written(root)}
    for path, page in pages.items():
        for reference in page.references:
            wrong = fault(path, reference, pages)
            if wrong:
                yield f"{path.relative_to(root)}: {wrong}"
    for style in sorted(root.rglob("*.css")):
        for address in STYLE_ADDRESS.findall(style.read_text(encoding="utf-8", errors="replace")):
            if outside(address):
                yield f"{style.relative_to(root)}: loads {address} from the network"


def written(root: Path) -> list[Path]:
    """The pages of a book; templates that a theme keeps among its static files are none."""
    return [path for path in sorted(root.rglob("*.html")) if "_static" not in path.relative_to(root).parts]


def fault(path: Path, reference: Reference, pages: dict[Path, Page]) -> str | None:
    """What is wrong with one address on one page, or None."""
    if outside(reference.address):
        return f"loads {reference.address} from the network" if reference.loads else None
    parts = urlsplit(reference.address)
    if parts.scheme:
        return None
    goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
    goal = goal / "index.html" if goal.is_dir() else goal
    if not goal.exists():
        return f"points to {reference.address}, which is not in the book"
    places = next((page.places for known, page in pages.items() if known.resolve() == goal), None)
    if places is not None and unquote(parts.fragment) not in places:
        return f"points to {reference.address}, but that page has no such place"
    return None


def main(folder: str) -> int:
    """Print every fault of the book in a folder; 1 if there is one."""
    if not (Path(folder) / "index.html").exists():
        print(f"{folder} holds no built book (index.html is missing); run `make book`")
        return 1
    found = list(faults(Path(folder)))
    print("\n".join(found) if found else f"links: every address in {folder} leads somewhere, and none loads from the network")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
