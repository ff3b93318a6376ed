"""Parameters of experiments and notebooks: typed, validated, canonical, parsed from strings."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import json
import re
import textwrap
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from flashspec.typed import in_words

NOTHING = ("none", "null", "")
PRESETS = Path(__file__).parent / "data" / "presets.toml"
UNFIT = (TypeError, ValueError, SyntaxError, OverflowError, RecursionError, MemoryError)
LARGEST = 2**63  # of a whole number, what torch and numpy count with
MANY = 10_000  # values of one parameter, points of a sweep
RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})", re.ASCII)


class Refused(ValueError):
    """A parameter, notebook or table that cannot be used, with one sentence that says what to do."""


def hints(kind: type) -> dict[str, Any]:
    """Field names and types of a dataclass, in order."""
    resolved = get_type_hints(kind)
    return {field.name: resolved[field.name] for field in dataclasses.fields(kind)}


def field_comments(kind: type) -> dict[str, str]:
    """The trailing comments of the `name: kind = default  # comment` lines of a class, by name."""
    source, found = textwrap.dedent(inspect.getsource(kind)).encode(), dict[str, str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign):
            rest = source.splitlines()[(node.end_lineno or 1) - 1][node.end_col_offset :].decode()
            found[ast.unparse(node.target)] = rest.partition("#")[2].strip()
    return found


def parse(kind: type, values: Mapping[str, Any]) -> Any:
    """Parameters of type `kind` from values or strings by field name; unknown names and wrong types are refused."""
    known = hints(kind)
    refuse_unknown(values, known)
    return kind(**{name: parse_value(name, known[name], value) for name, value in values.items()})


def presets_of(experiment: str, kind: type) -> dict[str, Any]:
    """An experiment's presets by name."""
    known = tomllib.loads(PRESETS.read_text(encoding="utf-8"))
    return {name: parse(kind, values) for name, values in known[experiment].items()}


def refuse_unknown(values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse the first name that is not known, with the nearest known one and the whole list."""
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            guess = f", did you mean {near[0]!r}" if near else ""
            raise Refused(f"unknown parameter {name!r}{guess}; known parameters: {', '.join(known) or 'none'}")


def parse_value(name: str, kind: Any, value: Any) -> Any:
    """A value of the annotated type, from such a value or the string that a command line or papermill passes."""
    try:
        return _parse(kind, value)
    except UNFIT as error:
        raise Refused(f"parameter {name!r} expects {in_words(kind)}, got {value!r:.80}: pass a value of that type") from error


def canonical(params: Any) -> dict[str, Any]:
    """Parameters as JSON values in declared types, so that 0 and 0.0 for a float field are one key."""
    typed = {name: parse_value(name, kind, getattr(params, name)) for name, kind in hints(type(params)).items()}
    return dict(json.loads(json.dumps(typed, default=str)))


def listed(text: str) -> list[Any]:
    """The values of a text: a literal in brackets, or parts by commas, where 1..3 is 1,2,3; ValueError for too many."""
    if text.strip()[:1] in ("(", "["):
        return list(ast.literal_eval(text))
    found = list[str]()
    for part in filter(None, map(str.strip, text.split(","))):
        ends = [int(end) for end in match.groups()] if (match := RANGE.fullmatch(part)) else []
        if ends and not 0 <= ends[1] - ends[0] < MANY - len(found):
            raise ValueError(f"{part} is empty or makes more than {MANY} values")
        found += map(str, range(ends[0], ends[1] + 1)) if ends else [part]
    return found


def _parse(kind: Any, value: Any) -> Any:
    import msgspec

    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if type(None) in kinds and isinstance(value, str) and value.lower() in NOTHING:
        return None
    if any(each in (tuple, list) or get_origin(each) in (tuple, list) for each in kinds) and value is not None:
        value = listed(value) if isinstance(value, str) else value if isinstance(value, (tuple, list)) else [value]
    if str in kinds and isinstance(value, Path):
        value = str(value)
    strict = bool in kinds and not isinstance(value, str)
    found = msgspec.convert(value, kind, strict=strict, dec_hook=lambda wanted, given: wanted(given))
    for each in found if isinstance(found, (tuple, list)) else (found,):
        if isinstance(each, (int, float)) and not -LARGEST <= each < LARGEST:
            raise ValueError(each)
    return found
