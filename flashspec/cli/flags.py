"""Command-line flags from the fields of a dataclass: one definition of names, types, defaults and help."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from flashspec.models.writing import expanded
from flashspec.study.parameters import field_comments, hints, parse_value, type_name


class At(click.Path):
    """A path whose leading ~ is a home folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expanded(value), param, ctx)


COUNT = click.IntRange(min=1, max=2**31 - 1)


def flags(kind: type, skip: tuple[str, ...] = ()) -> list[click.Option]:
    """One option a field: `--top-k INT`, its value a string that `given` parses; unset options stay None."""
    types, helps = hints(kind), field_comments(kind)
    wanted = [field for field in dataclasses.fields(kind) if field.name not in skip]
    return [_flag(field, types[field.name], helps.get(field.name, "")) for field in wanted]


def with_flags(kind: type, skip: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Decorate a command's function with the flags of a dataclass."""

    def decorate(function: Callable) -> Callable:
        function.__dict__.setdefault("__click_params__", []).extend(reversed(flags(kind, skip)))
        return function

    return decorate


def given(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `kind` that were set on the command line, parsed to their types."""
    types = hints(kind)
    return {name: parse_value(name, types[name], options[name]) for name in types if options.get(name) is not None}


def _flag(field: dataclasses.Field, kind: Any, text: str) -> click.Option:
    default = field.default if field.default is not dataclasses.MISSING else None
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    shown = f"{text + '; ' if text else ''}{_words(kind)}, default {_value(default)}"
    return click.Option([f"--{field.name.replace('_', '-')}", field.name], metavar="VALUE", help=shown)


def _words(kind: Any) -> str:
    return type_name(kind).replace("tuple[int, ...]", "whole numbers, by commas").replace("tuple[str, ...]", "names, by commas")


def _value(default: Any) -> str:
    return ",".join(map(str, default)) or "empty" if isinstance(default, (tuple, list)) else str(default)
