"""Prompts of several kinds: texts to continue, and instructions for chat models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from flashspec.decoding.models import SHIPPED, Models
from flashspec.models.chat import chat_prompt
from flashspec.models.files import Id
from flashspec.models.folder import read_as
from flashspec.models.writing import expanded

PROMPTS = SHIPPED / "prompts.json"
NAMED = {"instructions": SHIPPED / "instructions.json"}
SHAPE = "give a JSON file with a list of kind, text and ids under 'prompts'"


class Prompt(msgspec.Struct, frozen=True):
    """One prompt: its kind, token ids and text; or an instruction for a chat template."""

    kind: str
    ids: tuple[Id, ...] = ()
    text: str = ""
    chat: bool = False


class File(msgspec.Struct):
    """A prompts file."""

    prompts: tuple[Prompt, ...]


def load_prompts(path: Path | str | None = None, per_kind: int | None = None, models: Models | None = None) -> list[Prompt]:
    """Prompts of a file, the first `per_kind` of each kind, as token ids of these models.

    The default is the shipped texts; "instructions" is shipped too. Raises FileNotFoundError for a missing file, ValueError for
    one without prompts or of another shape.
    """
    file = NAMED.get(str(path)) or expanded(path or PROMPTS)
    if not file.is_file():
        raise FileNotFoundError(f"no prompts at {file.name}; {SHAPE}")
    found = read_as(file, File, SHAPE).prompts
    if not found:
        raise ValueError(f"{file.name} holds no prompts; write them anew")
    chosen = [prompt for before, prompt in numbered(found) if per_kind is None or before < per_kind]
    return chosen if models is None else [in_ids_of(models, prompt) for prompt in chosen]


def numbered(prompts: Iterable[Prompt]) -> Iterator[tuple[int, Prompt]]:
    """Prompts, each after the number of those of its kind before it."""
    seen = Counter[str]()
    for prompt in prompts:
        yield seen[prompt.kind], prompt
        seen[prompt.kind] += 1


def in_ids_of(models: Models, prompt: Prompt) -> Prompt:
    """The prompt in the models' ids; unchanged if its ids already spell its text, or if this cannot be checked.

    ValueError for an instruction where the target has no chat template.
    """
    if prompt.chat:
        said = chat_prompt(models.folders["target"], prompt.text)
        return msgspec.structs.replace(prompt, ids=tuple(models.encode(said, rendered=True)))
    if models.tokenizer is None or not prompt.text or models.decode(list(prompt.ids)) == prompt.text:
        return prompt
    return msgspec.structs.replace(prompt, ids=tuple(models.encode(prompt.text)))
