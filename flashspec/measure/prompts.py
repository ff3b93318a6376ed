"""The shipped prompts: texts of several kinds from modules that no model was trained on, with their token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from flashspec.decoding.models import SHIPPED, Models

PROMPTS = SHIPPED / "prompts.json"


class Prompt(NamedTuple):
    """One prompt: its kind (code, tests, docstrings, prose), token ids and text."""

    kind: str
    ids: tuple[int, ...]
    text: str = ""


def load_prompts(path: Path | str | None = None, per_kind: int | None = None, models: Models | None = None) -> list[Prompt]:
    """Prompts of a file (the shipped ones by default), the first `per_kind` of each kind, in the ids of these models.

    Raises FileNotFoundError for a missing file, ValueError for one without prompts.
    """
    file = Path(path or PROMPTS)
    if not file.exists():
        raise FileNotFoundError(f"no prompts at {file.name}; give a JSON file with a list of kind, text and ids under 'prompts'")
    found = [_prompt(entry) for entry in json.loads(file.read_text(encoding="utf-8"))["prompts"]]
    if not found:
        raise ValueError(f"{file.name} holds no prompts; write them anew")
    chosen = first_of_each_kind(found, per_kind) if per_kind else found
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


def _prompt(entry: dict[str, Any]) -> Prompt:
    return Prompt(entry["kind"], tuple(int(i) for i in entry["ids"]), entry.get("text", ""))
