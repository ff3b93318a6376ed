"""What a checkpoint says about its own use: its chat template and its sampling defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from flashspec.models.files import Generation, shaped
from flashspec.models.folder import first_line, read_json

SAMPLED = ("temperature", "top_k", "top_p")
CHANGES_TEXT = ("repetition_penalty", "no_repeat_ngram_size", "min_p", "typical_p")
NEUTRAL = (None, 0, 1, 1.0, 0.0)


class Defaults(NamedTuple):
    """Sampling fields a checkpoint asks for, and settings it asks for that are not applied here."""

    sampling: dict[str, Any]
    ignored: dict[str, Any]


def generation_defaults(folder: Path) -> Defaults:
    """What generation_config.json asks for: greedy decoding (no fields) unless it says do_sample.

    Raises FileNotFoundError where the checkpoint has no such file.
    """
    path = folder / "generation_config.json"
    found = shaped(read_json(path, "this checkpoint has no defaults of its own: give --temperature and so on"), Generation, path)
    ignored = {name: value for name in CHANGES_TEXT if (value := getattr(found, name)) not in NEUTRAL}
    if not found.do_sample:
        return Defaults({}, ignored)
    wanted = {name: value for name in SAMPLED if (value := getattr(found, name)) is not None}
    return Defaults({"temperature": 1.0} | wanted, ignored)


def chat_prompt(folder: Path, message: str, system: str | None = None) -> str:
    """The text that the checkpoint's chat template makes of one user message, ending where the answer begins.

    Raises ModuleNotFoundError without transformers and jinja2, ValueError where the checkpoint has no template, or one that
    refuses such a conversation.
    """
    try:
        import jinja2  # noqa: F401
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"chat templates are written for transformers and jinja2 ({error.name} is missing): pip install transformers jinja2"
        ) from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers checks few of the types in these files
        raise ValueError(
            f"transformers cannot read the tokenizer of {folder} ({first_line(error)}); copy the whole folder again"
        ) from None
    if not tokenizer.chat_template:
        raise ValueError(f"{folder} has no chat template; leave --chat out, or use a model trained for conversations")
    said = [{"role": "user", "content": message}]
    said = said if system is None else [{"role": "system", "content": system}, *said]
    try:
        return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template may raise anything
        advice = "give the prompt without --chat" + ("" if system is None else ", or leave the system message out")
        raise ValueError(f"the chat template of {folder} refuses this conversation ({first_line(error)}); {advice}") from None
