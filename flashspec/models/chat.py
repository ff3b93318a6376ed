"""What a checkpoint or GGUF file says about its own use: its chat template and its sampling defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashspec.models.files import Generation, Speech, shaped
from flashspec.models.folder import GGUF, first_line, read_as
from flashspec.models.gguf import opened
from flashspec.models.gguf_tokenizer import special_tokens

SAMPLED = ("temperature", "top_k", "top_p")
GGUF_SAMPLED = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
CHANGES_TEXT = ("repetition_penalty", "no_repeat_ngram_size", "min_p", "typical_p")
NEUTRAL = (None, 0, 1, 1.0, 0.0)


def generation_defaults(model: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sampling fields that generation_config.json or a GGUF file asks for, and what it asks for that is not applied here.

    Without do_sample decoding is greedy, and there are no fields.

    Raises FileNotFoundError where a folder has no such file.
    """
    if model.suffix == GGUF:  # its stop ids are the model's already
        path, facts = model, opened(model).facts
        raw = {name: facts.get(f"general.sampling.{key}") for name, key in GGUF_SAMPLED.items()}
        raw["do_sample"] = raw["temperature"] is not None
    else:
        path = model / "generation_config.json"
        raw = read_as(path, dict, "this checkpoint has no defaults of its own: give --temperature and so on")
    found = shaped(raw, Generation, path)
    ignored = {name: value for name in CHANGES_TEXT if (value := getattr(found, name)) not in NEUTRAL}
    if not found.do_sample:
        return {}, ignored
    wanted = {name: value for name in SAMPLED if (value := getattr(found, name)) is not None}
    return {"temperature": 1.0} | wanted, ignored


def chat_prompt(model: Path, message: str, system: str | None = None) -> str:
    """What the chat template of a folder or GGUF file makes of one user message, up to the answer.

    Raises ValueError where there is no template, or it refuses, fails, or does more than make a prompt.
    """
    from flashspec.models.templates import rendered

    template, tokens = chat_of(model)
    if not template:
        raise ValueError(f"{model} has no chat template; leave --chat out, or use a model trained for conversations")
    said = [{"role": "user", "content": message}]
    said = said if system is None else [{"role": "system", "content": system}, *said]
    try:
        return rendered(template, {"messages": said, "add_generation_prompt": True, **tokens})
    except Exception as error:  # a template may raise anything
        advice = "give the prompt without --chat" + ("" if system is None else ", or leave the system message out")
        raise ValueError(f"the chat template of {model} refuses this conversation ({first_line(error)}); {advice}") from None


def chat_of(model: Path) -> tuple[str, dict[str, str]]:
    """A model's chat template, "" where it has none, and the texts of its special tokens by name."""
    if model.suffix == GGUF:
        file = opened(model)
        return str(file.facts.get("tokenizer.chat_template", "")), special_tokens(file)
    path, own = model / "tokenizer_config.json", model / "chat_template.jinja"
    found = read_as(path, Speech) if path.is_file() else Speech()
    template = own.read_text(encoding="utf-8") if own.is_file() else found.template
    return template, found.tokens
