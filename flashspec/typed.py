"""Arguments checked against their annotations, in one place for every public entry, and against what is possible.

An impossible number is refused by name, never computed with.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, replace
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Entry = TypeVar("Entry", bound=Callable[..., Any])
D = TypeVar("D", bound=Any)
N = TypeVar("N", int, float)
WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "True or False", NoneType: "None"}
LARGEST = 2**62  # of whole numbers that torch takes for a number
MANY = {"a whole number": "whole numbers", "a number": "numbers", "a string": "strings", "a string or Path": "strings"}


def typed(entry: Entry) -> Entry:
    """A function or dataclass that refuses an argument of another type than annotated, with a ValueError."""
    call = entry.__init__ if isinstance(entry, type) else entry  # type: ignore[misc]
    signature = inspect.signature(call)
    hints = functools.cache(lambda: get_type_hints(call))

    @functools.wraps(call)
    def checked(*given: Any, **named: Any) -> Any:
        for name, value in signature.bind(*given, **named).arguments.items():
            refuse(name, value, hints().get(name, Any))
        return call(*given, **named)

    if not isinstance(entry, type):
        return checked  # type: ignore[return-value]
    entry.__init__ = checked  # type: ignore[misc]
    return entry


def in_words(hint: Any) -> str:
    """A type as one would say it."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(in_words, get_args(hint)))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if _is_list(hint):
        one = in_words(get_args(hint)[0])
        return f"a list of {MANY.get(one, one)}"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def refuse(name: str, value: Any, hint: Any) -> None:
    """ValueError where a value does not match its annotation."""
    if not _fits(value, hint):
        raise ValueError(f"{name} must be {in_words(hint)}, got {' '.join(reprlib.repr(value).split())}")


def whole_numbers(name: str, values: Iterable[int]) -> tuple[int, ...]:
    """Values, such as ids, as plain integers; ValueError for anything else."""
    refuse(name, values, tuple[int, ...])
    return tuple(map(operator.index, values))


def changed(value: D, changes: Mapping[str, Any], owner: str) -> D:
    """A dataclass's value with fields changed; ValueError names a field that its `owner` does not have."""
    known = [field.name for field in fields(value)]
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no option of {owner}; options: {', '.join(known)}")
    return replace(value, **changes)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if _is_list(hint):
        listed = isinstance(value, Collection) and not isinstance(value, (str, bytes, bytearray, Mapping))
        return listed and getattr(value, "ndim", 1) > 0 and all(_fits(one, get_args(hint)[0]) for one in value)
    if hint is int:
        return _is_whole(value)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and not (isinstance(value, int) and abs(value) > LARGEST)
    if get_origin(hint) is Callable:
        return callable(value)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _is_list(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Iterable) and not issubclass(origin, Mapping)


def _is_whole(value: Any) -> bool:
    """Whether this is an integer of any library, and not a bool."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _checked(value: N, holds: bool, words: str) -> N:
    if not holds:
        raise ValueError(f"{words}, got {value}")
    return value


def check_share(name: str, value: float) -> float:
    return _checked(value, 0.0 <= value <= 1.0, f"{name} must lie in [0, 1]")


def check_block(block: int) -> int:
    return _checked(block, block >= 1 and block == int(block), "block must be a whole number of at least 1")


def check_latency(name: str, value: float) -> float:
    return _checked(value, 0.0 <= value < math.inf, f"{name} must be finite and at least 0")


def check_positive(name: str, value: float) -> float:
    return _checked(value, value > 0.0, f"{name} must be above 0")


def at_least(params: Any, **least: int) -> None:
    """Refuse a field, or a member of a list field, below its least value, and an empty list."""
    for name, low in least.items():
        value = getattr(params, name)
        values = value if isinstance(value, (tuple, list)) else (value,)
        if not values or min(values) < low:
            raise ValueError(f"{name} must be at least {low}, got {min(values) if values else 'none'}")


def one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """Refuse a value that is not known."""
    if value not in (choices := tuple(known)):
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def among(params: Any, **known: Iterable[str]) -> None:
    """Refuse a field, or a member of a list field, that is not known."""
    for name, choices in known.items():
        value = getattr(params, name)
        for each in value if isinstance(value, (tuple, list)) else (value,):
            one_of(name, each, choices)
