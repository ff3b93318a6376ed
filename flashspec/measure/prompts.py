"""The shipped prompts: texts of several kinds from modules that no model was trained on, with their token ids."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from flashspec.decoding.models import SHIPPED, Models
from flashspec.models.files import Id
from flashspec.models.folder import read_as
from flashspec.models.writing import expanded

PROMPTS = SHIPPED / "prompts.json"
SHAPE = "give a JSON file with a list of kind, text and ids under 'prompts'"


class Entry(msgspec.Struct):
    """One prompt as a file has it."""

    kind: str
    ids: tuple[Id, ...]
    text: str = ""


class File(msgspec.Struct):
    """A prompts file."""

    prompts: tuple[Entry, ...]


class Prompt(NamedTuple):
    """One prompt: its kind (code, tests, docstrings, prose), token ids and text."""

    kind: str
    ids: tuple[int, ...]
    text: str = ""


def load_prompts(path: Path | str | None = None, per_kind: int | None = None, models: Models | None = None) -> list[Prompt]:
    """Prompts of a file (the shipped ones by default), the first `per_kind` of each kind, in the ids of these models.

    Raises FileNotFoundError for a missing file, ValueError for one without prompts or of another shape, and for a number
    below 1.
    """
    if per_kind is not None and per_kind < 1:
        raise ValueError(f"per_kind must be at least 1, got {per_kind}")
    file = expanded(path or PROMPTS)
    if not file.is_file():
        raise FileNotFoundError(f"no prompts at {file.name}; {SHAPE}")
    found = [Prompt(entry.kind, entry.ids, entry.text) for entry in read_as(file, File, SHAPE).prompts]
    if not found:
        raise ValueError(f"{file.name} holds no prompts; write them anew")
    chosen = found if per_kind is None else first_of_each_kind(found, per_kind)
    return chosen if models is None else [in_ids_of(models, prompt) for prompt in chosen]


def in_ids_of(models: Models, prompt: Prompt) -> Prompt:
    """The prompt's text in the ids of another tokenizer; as it is where its ids spell the text already, or nothing can tell."""
    if models.tokenizer is None or not prompt.text or models.decode(list(prompt.ids)) == prompt.text:
        return prompt
    return prompt._replace(ids=tuple(models.encode(prompt.text)))


def first_of_each_kind(prompts: Iterable[Prompt], count: int) -> list[Prompt]:
    """The first `count` prompts of every kind, in order."""
    taken: dict[str, int] = {}
    kept = []
    for prompt in prompts:
        taken[prompt.kind] = taken.get(prompt.kind, 0) + 1
        if taken[prompt.kind] <= count:
            kept.append(prompt)
    return kept
