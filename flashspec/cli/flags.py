"""Command-line flags: those that commands share, and one per field of a dataclass."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any, get_args, get_origin

import click

from flashspec.decoding.method import CHOICES
from flashspec.decoding.models import REFERENCE
from flashspec.models.folder import PAIRS
from flashspec.models.writing import expanded
from flashspec.parameters import field_comments, hints, parse_value
from flashspec.sampling import RULES


class At(click.Path):
    """A path; a leading ~ is the home folder; a device, which may have no end, is no file that exists."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        place = Path(str(super().convert(expanded(value), param, ctx)))
        if self.exists and place.is_char_device():
            self.fail(f"{place} is a device; name a file", param, ctx)
        return place


class Value(click.ParamType):
    """A value of an annotated type, parsed like a parameter of an experiment."""

    name = "value"

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return parse_value(str(param and param.name), self.kind, value)


def with_options(*options: Callable[[Callable], Callable]) -> Callable[[Callable], Callable]:
    """Decorate a command's function with these options, shown in this order."""
    return lambda function: reduce(lambda inner, each: each(inner), reversed(options), function)


option = partial(click.option, show_default=True)
FILE = At(exists=True, dir_okay=False)
RESULTS: dict[str, Any] = {"type": At(), "help": "Folder of the tables, default book/results."}
METAVARS = {int: "INTEGER", float: "NUMBER", str: "NAME", bool: "true|false"}
COUNT = click.IntRange(min=1, max=2**31 - 1)

NAMED = ", ".join([*REFERENCE["target"], *PAIRS]) + ", a checkpoint folder, a GGUF file or a cached hub name"
TARGET = option("--target", default="reference", help=f"{NAMED}.")
DRAFT = option("--draft", default="reference", help=", ".join(REFERENCE["draft"]) + ", a published name or a checkpoint folder.")
K = option("--k", type=COUNT, default=4, help="Drafted tokens per check.")
PROMPTS = option("--prompts", type=FILE, help="A prompts file instead of the shipped one.")
TEXTS = option("--text", "texts", type=FILE, multiple=True, help="A text; may be repeated. Default: Python's standard library.")
DTYPES, WEIGHTS = click.Choice(("auto", "float32", "bfloat16")), click.Choice(("auto", "int4", "dense"))
DTYPE = option("--dtype", type=DTYPES, default="float32", help="Numbers that models compute in.")
PRECISION = with_options(
    option("--dtype", type=DTYPES, default="auto", help="Numbers that models compute in; auto: those of their files."),
    option("--device", default="auto", help="auto, cpu, cuda or cuda:1; auto: CUDA where there is any."),
    option("--weights", type=WEIGHTS, default="auto", help="Of 4-bit checkpoints; auto: as they are, dense: widened."),
)
# What options take by their names.
KNOWN: dict[str, tuple[str, ...]] = {name: CHOICES[name] for name in ("head", "finalize", "middle")}
KNOWN |= {"rule": RULES, "dtype": ("float32", "bfloat16")}


def with_flags(kind: type, skip: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Decorate a command's function with one option per field, `--top-k` for top_k; unset options are None."""
    types, helps = hints(kind), field_comments(kind)
    fields = [field for field in dataclasses.fields(kind) if field.name not in skip]
    return with_options(*(_flag(field, types[field.name], helps.get(field.name, "")) for field in fields))


def given(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `kind` that were set on the command line."""
    return {name: options[name] for name in hints(kind) if options.get(name) is not None}


def busy(words: str) -> None:
    """Say on standard error what takes a while, where somebody watches."""
    if sys.stderr.isatty():
        click.secho(f"{words} ...", err=True, dim=True)


def _flag(field: dataclasses.Field, kind: Any, text: str) -> Callable[[Callable], Callable]:
    """An option for a field: its comment, what it takes where that is a list of names, and its default."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    shown = str(",".join(map(str, default)) if isinstance(default, (tuple, list)) else default) or "empty"
    known, many = KNOWN.get(field.name, ()), get_origin(kind) in (tuple, list)
    names = "" if all(name in text for name in known) else f"; {'some' if many else 'one'} of {', '.join(known)}"
    word = next(word for part, word in METAVARS.items() if part in (kind, *get_args(kind)))
    looks: Any = {"metavar": word + ",..." * many, "help": f"{text[:1].upper()}{text[1:]}{names}.  [default: {shown}]"}
    return click.option(f"--{field.name.replace('_', '-')}", field.name, type=Value(kind), **looks)


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A small table as lines of text; the first row holds the column heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
