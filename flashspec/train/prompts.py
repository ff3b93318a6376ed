"""The study's prompts: four kinds of text, cut from held-out modules, a fixed function of the corpus."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KINDS = ("code", "tests", "docstrings", "prose")
LENGTH = 64


@dataclass(frozen=True)
class Prompt:
    """One prompt: its kind, the module and line it begins at, text and token ids."""

    kind: str
    module: str
    line: int
    text: str
    ids: tuple[int, ...]


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _cuts(source: str, module: str) -> Iterator[tuple[str, int, str]]:
    """(kind, line, text that the prompt is the beginning of) for every place of a module a prompt may start at."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    lines = source.splitlines(keepends=True)
    kind = "tests" if "test" in module else "code"
    for node in _functions(tree):
        yield kind, node.lineno, "".join(lines[node.lineno - 1 :])
        if ast.get_docstring(node):
            opening = node.body[0].lineno
            yield "docstrings", opening, "".join(lines[max(0, opening - 6) : opening])
    for part in ast.walk(tree):
        if isinstance(part, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(part, clean=False) or ""
            if len(text.split()) > 60:
                yield "prose", part.body[0].lineno, text.lstrip()


def _prompts(file: Path, root: Path, tokenizer: Any) -> Iterator[Prompt]:
    module = file.relative_to(root).as_posix()
    for kind, line, text in _cuts(file.read_text(encoding="utf-8"), module):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        ids = ids[-LENGTH:] if kind == "docstrings" else ids[:LENGTH]
        if len(ids) >= LENGTH // 2:
            yield Prompt(kind, module, line, tokenizer.decode(ids), tuple(ids))


def choose(files: list[Path], root: Path, tokenizer: Any, each: int = 128) -> list[dict]:
    """Up to `each` prompts of every kind, spread over modules: no module gives a second one before every module gave one."""
    found = [p for file in files for p in _prompts(file, root, tokenizer)]
    chosen: list[Prompt] = []
    for kind in KINDS:
        of_kind = sorted((p for p in found if p.kind == kind), key=_order)
        chosen += sorted(of_kind, key=lambda p: _turn(p, of_kind))[:each]
    return [asdict(p) for p in chosen]


def _order(prompt: Prompt) -> str:
    """A fixed shuffle."""
    return hashlib.sha256(f"{prompt.module}:{prompt.line}".encode()).hexdigest()


def _turn(prompt: Prompt, of_kind: list[Prompt]) -> int:
    """How many prompts of the same module come before this one."""
    return [p for p in of_kind if p.module == prompt.module].index(prompt)
