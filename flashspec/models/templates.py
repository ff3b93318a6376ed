"""Chat templates as transformers renders them, in jinja2's sandbox: they may only make a text, soon."""

from __future__ import annotations

import json
import math
import sys
import time
from datetime import datetime
from functools import partial
from types import FrameType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, LETTERS = 5.0, 30_000_000  # of all texts on the way to the prompt, about nine times its own


class Generation(Extension):
    """`{% generation %}` marks what a model says; it changes no text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with the functions that transformers gives to templates; no product may be absurdly long."""

    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self) -> None:
        extensions = [Generation, "jinja2.ext.loopcontrols"]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # jinja2's own writes it for HTML
        self.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [] if operator == "+" else [len(side) if hasattr(side, "__len__") else abs(side) for side in (left, right)]
        if math.prod(sizes) > LETTERS:
            raise TemplateError(f"it multiplies to more than {LETTERS}")
        return super().call_binop(context, operator, left, right)


def refuse(message: str) -> None:
    """What a template calls on a conversation that it does not take."""
    raise TemplateError(message)


def rendered(template: str, given: dict[str, Any]) -> str:
    """What a template makes of these variables; TemplateError and others for one that fails or runs too long."""
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
