"""The English is what an engineer would say aloud, no page types a number, and the glossary explains its terms."""

import ast
import json
import re
from dataclasses import fields

import click
import pytest
from shelf import ROOT

from flashspec.cli.main import group
from flashspec.decoding.method import Method
from flashspec.sampling import Sampling

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[!.]*.ipynb"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md")), *NOTEBOOKS]
GLOSSARY = ROOT / "book" / "glossary.md"
GENERATED = re.compile(r"<!-- results: written by .*?<!-- end of results -->", re.S)
CODE = re.compile(r"(?<=\n)(`{3,}|~{3,})(?!\{glossary|\{grid)[^\n]*\n.*?\n\1(?=\n)|`[^`\n]+`|\$\$.*?\$\$|\$[^$\n]+\$", re.S)
ROLE = re.compile(r"\{(\w+)(?::\w+)?\}`([^`]*)`")
LINK = re.compile(r"\]\([^)]*\)|https?://\S+|<!--.*?-->|^\([\w-]+\)=$|^:+(?:\{[\w-]+\}[^\n]*)?$|^:[\w-]+:[^\n]*$", re.M | re.S)
WORDS = {  # what nobody says aloud, each with a sentence that it must find
    r"(?<!-)\b(?:stand|stands|stood|standing)\b(?!-in)": "a drafted token has to stand with 0.68",
    r"\b(?:lie|lies|lay|lying)\b": "95 % of the runs lie within 8 %",
    r"\btold\b": "kinds are told apart",
    r"\bforet(?:ell|ells|old)\b": "foretold rightly",
    r"\bgifts?\b|\b(?:a|an|the|each|every) presents?\b(?! (?:state|version|value))": "What a present would give",
    r"\bdear(?:er|est|ly)?\b": "where the target's step is dear",
    r"\bmend(?:s|ed|ing)?\b": "a head cannot mend it",
    r"(?<!Amdahl's )(?<!Amdahl’s )\blaws?\b": "the law of the quarter's exit",
    r"\bhand(?:s|ed|ing)? (?:it |them )?(?:up|on|over)\b": "hand it on to make",
    r"\bput to (?:it|the)\b|\bkeeps?\b.{0,30}\bof what\b": "kept little of what is put to it",
    r"\b(?:as|is|are|was|were) asked for\b": "imported when it is asked for",
    r"\bby these parts alone\b|\bbuys? its\b|\bnowhere in this\b": "Coupling buys its equal texts",
    r"\bbehind\b": "rows behind the norm",
    r"\bin words\b|\bof ours\b|\bvouch": "ValueError in words for a model of ours",
    r"\b(?:afresh|anew)\b": "rows are permuted anew",
    r"\b(?:one|a) (?:line|row|point|panel|mark|colour|bar) an? (?!time)\w+": "One line a question",
    r"\bbrought nothing\b": "what was tried and brought nothing",
}
SOUND = (
    "By Amdahl's law a stand-in head gains little; the file is present, and at present nothing understands the standard layout.",
    "At k = 3, 1.5 times needs an acceptance of 0.68; one line at a time, what is kept of the text is accepted.",
)
NAMES = re.compile(
    r"\b(?:Qwen|SmolLM2|OPT|LLaMA|Llama)[\w.-]*|\b\d+(?:\.\d+)?[BM]\b|\b(?:qwen-\d+|smollm2(?:-\d+)?)\b"  # models
    r"|\b(?:b?float|int|F|BF)\d+\b|\bQ\d_\w+|\b\d-bit\b|\b\d bits?\b|\bPython \d\.\d+|\btorch \d\.\d+|\bApache-2\.0"  # formats
    r"|\bT = 1\b|\b95 % (?:intervals?\b|of )|\bchapters? \d+\b|^#+ \d+\. |^\d+\. |(?<![\d.,])[01](?!\d|[.,]\d)",
    re.M,
)  # fmt: skip


def text_of(page):
    """What a reader of a page reads, but for what a command or a stored table wrote."""
    if page.suffix == ".md":
        return GENERATED.sub("", page.read_text(encoding="utf-8"))
    found = []
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        figure = cell["metadata"].get("mystnb", {})
        found += ["".join(cell["source"])] if cell["cell_type"] == "markdown" else []
        found += [figure.get("figure", {}).get("caption", ""), figure.get("image", {}).get("alt", "")]
    return "\n\n".join(filter(None, found))


def prose(text):
    """A page without code, formulas, addresses and the numbers that it glues."""
    bare = ROLE.sub(lambda role: role[2].partition("<")[0] if role[1] == "term" else "", "\n" + text + "\n")
    return LINK.sub("", CODE.sub(" ", bare))


def promises():
    """Every docstring of the package and of the book's extensions, by place."""
    for path in (*sorted((ROOT / "flashspec").rglob("*.py")), *sorted((ROOT / "book" / "_ext").glob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (said := ast.get_docstring(node)):
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'name', '')}", said


def helps(command, name="flashspec"):
    """The help of every command and option, by place."""
    with click.Context(command) as context:
        yield name, command.get_help(context)
        for child in command.list_commands(context) if isinstance(command, click.Group) else ():
            yield from helps(command.get_command(context, child), f"{name} {child}")


def faults(places):
    """Each forbidden phrase with the place where it is and the words around it."""
    for place, text in places:
        said = " ".join(prose(text).split())
        for pattern in WORDS:
            found = (match.span() for match in re.finditer(pattern, said, re.I))
            yield from (f"{place}: ... {said[max(start - 30, 0) : end + 20]}" for start, end in found)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_a_page_says_nothing_that_nobody_would_say_aloud(page):
    assert list(faults([(page.name, text_of(page))])) == []


def test_docstrings_and_help_say_nothing_that_nobody_would_say_aloud():
    assert list(faults(promises())) == []
    assert list(faults(helps(group))) == []


@pytest.mark.parametrize(("pattern", "sentence"), WORDS.items(), ids=lambda value: value[:24])
def test_the_control_every_pattern_finds_its_sentence_and_spares_sound_ones(pattern, sentence):
    assert list(faults([("here", f"So {sentence}.")])), sentence
    assert not any(re.search(pattern, each, re.I) for each in SOUND)
    assert not list(faults([("here", f"```sh\n{sentence}\n```\n`{sentence}`")]))


def typed(text):
    """Numbers in prose that are neither glued nor part of a name."""
    return [line for line in NAMES.sub("", prose(text)).splitlines() if re.search(r"\d", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_types_a_number(page):
    assert typed(text_of(page)) == []


def test_the_control_a_typed_number_is_found_and_a_name_or_a_glued_one_is_not():
    assert all(map(typed, ("1.3× faster", "saves 20 % of the time", "16 layers", "in 3 ms", "1.26", "2 of 7", "k = 4")))
    sound = "Qwen2.5-Coder-1.5B with its 0.5B, in int8 at T = 1: {glue:text}`a:.2f`, 95 % interval, $2^3$, `k = 3`, 1 or 0."
    assert typed(sound) == []


def entries():
    """The terms of the glossary with their sentences; terms that share a sentence are joined by newlines."""
    body = re.search(r"```\{glossary\}\n(?::\w+:\n)*\n?(.*?)\n```", GLOSSARY.read_text(encoding="utf-8"), re.S)[1]
    return re.findall(r"((?:^\S.*\n)+)((?:  .*\n?)+)", body + "\n", re.M)


def test_the_glossary_has_a_sentence_for_every_term_that_a_page_links_to_and_every_option_of_a_method():
    known = [term for terms, _ in entries() for term in terms.splitlines()]
    assert known == list(dict.fromkeys(known)) and len(known) > 40
    linked = {role[2] for page in PAGES for role in ROLE.finditer(text_of(page)) if role[1] == "term"}
    goals = {re.sub(r".*<(.*)>", r"\1", term).casefold() for term in linked}
    assert goals <= {term.casefold() for term in known} and len(goals) > 10
    options = {field.name for kind in (Method, Sampling) for field in fields(kind)}
    assert options <= {term.strip("`").casefold().replace(" ", "_") for term in known}
    assert all(sentence.strip().endswith(".") and ". " not in sentence for _, sentence in entries())
