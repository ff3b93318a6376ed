"""A checkpoint's or GGUF file's own advice: its sampling defaults and its chat template.

Templates are rendered as transformers does it, in jinja2's sandbox: they may only produce text, within a time limit.
"""

from __future__ import annotations

import json
import math
import sys
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flashspec.models.files import Generation, Speech, shaped
from flashspec.models.folder import GGUF, first_line, read_as
from flashspec.models.gguf import opened
from flashspec.models.tokenizer import special_tokens

SAMPLED = ("temperature", "top_k", "top_p")
GGUF_SAMPLED = {"temperature": "temp", "repetition_penalty": "penalty_repeat"} | {n: n for n in ("top_k", "top_p", "min_p")}
CHANGES_TEXT = ("repetition_penalty", "no_repeat_ngram_size", "min_p", "typical_p")
NEUTRAL = (None, 0, 1, 1.0, 0.0)
SECONDS, LETTERS = 5.0, 30_000_000  # of all texts on the way to the prompt, about nine times its own


def generation_defaults(model: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sampling fields that generation_config.json or a GGUF file sets, none without do_sample, and what is not applied here.

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
    """One user message in the chat template of a folder or GGUF file, up to the answer.

    Raises ValueError where there is no template, or it refuses, fails, or does more than make a prompt.
    """
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
    """A model's chat template ("" without one) and the texts of its special tokens by name."""
    if model.suffix == GGUF:
        file = opened(model)
        return str(file.facts.get("tokenizer.chat_template", "")), special_tokens(file)
    path, own = model / "tokenizer_config.json", model / "chat_template.jinja"
    found = read_as(path, Speech) if path.is_file() else Speech()
    template = own.read_text(encoding="utf-8") if own.is_file() else found.template
    return template, found.tokens


class Marked(Extension):
    """`{% generation %}` marks the model's own words; it changes no text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with the functions that transformers gives to templates; results have a limited length."""

    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self) -> None:
        extensions = [Marked, "jinja2.ext.loopcontrols"]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # jinja2's own writes it for HTML
        self.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [] if operator == "+" else [len(side) if hasattr(side, "__len__") else abs(side) for side in (left, right)]
        if math.prod(sizes) > LETTERS:
            raise TemplateError(f"it multiplies to more than {LETTERS}")
        return super().call_binop(context, operator, left, right)


def refuse(message: str) -> None:
    """What a template calls for a conversation that it does not accept."""
    raise TemplateError(message)


def rendered(template: str, given: dict[str, Any]) -> str:
    """A template filled with these variables; TemplateError and others for one that fails or runs too long."""
    end, before, letters = time.monotonic() + SECONDS, sys.gettrace(), 0

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        """Stop at the next line when the time is over, or all texts together are too long."""
        nonlocal letters
        letters += len(argument) if event == "return" and isinstance(argument, str) else 0
        if letters > LETTERS:
            raise TemplateError(f"it writes more than {LETTERS} letters")
        if time.monotonic() > end:
            raise TemplateError(f"it runs longer than {SECONDS:g} s")
        return watch

    sys.settrace(watch)
    try:
        return Environment().from_string(template).render(tools=None, documents=None, **given)
    finally:
        sys.settrace(before)
