"""Command-line flags: those that commands share, and one per field of a dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial, reduce
from pathlib import Path
from typing import Any, get_args, get_origin

import click

from flashspec.models.writing import expanded
from flashspec.study.parameters import field_comments, hints, parse_value


class At(click.Path):
    """A path; a leading ~ is the home folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expanded(value), param, ctx)


class Value(click.ParamType):
    """A value of an annotated type, parsed like a parameter of an experiment."""

    name = "value"

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return parse_value(str(param and param.name), self.kind, value)


option = partial(click.option, show_default=True)
FILE = At(exists=True, dir_okay=False)
FOLDER = At(file_okay=False)
METAVARS = {int: "INTEGER", float: "NUMBER", str: "NAME", bool: "true|false"}
COUNT = click.IntRange(min=1, max=2**31 - 1)

TARGET = option("--target", default="reference", help="A shipped or published name, a folder, a GGUF file or a cached hub name.")
DRAFT = option("--draft", default="reference", help="A shipped draft or a checkpoint folder.")
K = option("--k", type=COUNT, default=4, help="Drafted tokens per check.")
PROMPTS = option("--prompts", type=FILE, help="A prompts file instead of the shipped one.")
TEXTS = option("--text", "texts", type=FILE, multiple=True, help="A text; may be repeated. Default: Python's standard library.")
DTYPE = option("--dtype", default="float32", help="auto, float32 or bfloat16.")
PRECISION = (
    option("--dtype", default="auto", help="auto, float32 or bfloat16."),
    option("--device", default="auto", help="auto, cpu or cuda."),
    option("--weights", default="auto", help="auto, int4 or dense, for 4-bit checkpoints."),
)


def with_options(*options: Callable[[Callable], Callable]) -> Callable[[Callable], Callable]:
    """Decorate a command's function with these options, shown in this order."""
    return lambda function: reduce(lambda inner, each: each(inner), reversed(options), function)


def flags(kind: type, skip: tuple[str, ...] = ()) -> list[click.Option]:
    """One option per field, `--top-k` for top_k; unset options are None."""
    types, helps = hints(kind), field_comments(kind)
    fields = [field for field in dataclasses.fields(kind) if field.name not in skip]
    return [_flag(field, types[field.name], helps.get(field.name, "")) for field in fields]


def with_flags(kind: type, skip: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Decorate a command's function with the flags of a dataclass."""

    def decorate(function: Callable) -> Callable:
        function.__dict__.setdefault("__click_params__", []).extend(reversed(flags(kind, skip)))
        return function

    return decorate


def given(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `kind` that were set on the command line."""
    return {name: options[name] for name in hints(kind) if options.get(name) is not None}


def _flag(field: dataclasses.Field, kind: Any, text: str) -> click.Option:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(default, (tuple, list)):
        default = ",".join(map(str, default))
    shown = "none" if default is None else default if default != "" else "empty"
    text = f"{text[:1].upper()}{text[1:]}.  " if text else ""
    names = [f"--{field.name.replace('_', '-')}", field.name]
    return click.Option(names, type=Value(kind), metavar=_metavar(kind), help=f"{text}[default: {shown}]")


def _metavar(kind: Any) -> str:
    """What a flag of this type takes: NAME, NUMBER,... or the like."""
    first = next((each for each in get_args(kind) if each is not type(None)), kind)
    return METAVARS.get(first, "VALUE") + ",..." * (get_origin(kind) in (tuple, list))
