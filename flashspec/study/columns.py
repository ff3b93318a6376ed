"""Typed columns of a table: a row type's fields to text cells and back, exactly."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from flashspec.study.parameters import Refused

PLAIN = (bool, int, float, str)
ACCEPTED: dict[type, Any] = {bool: bool, int: Integral, float: Real, str: str}


class Columns:
    """Columns of a NamedTuple or dataclass whose fields are bool, int, float, str, or one of these or None."""

    def __init__(self, row: type) -> None:
        self.row = row
        self.kinds = {name: _kind(row, name, hint) for name, hint in get_type_hints(row).items() if name in _fields(row)}
        self.names = tuple(self.kinds)

    def cells(self, row: Any) -> list[str]:
        """A row as text: floats by their shortest exact form, None as an empty cell."""
        if not isinstance(row, self.row):
            raise TypeError(f"expected a row of type {self.row.__name__}, got {type(row).__name__}")
        return [_cell(name, getattr(row, name), *self.kinds[name]) for name in self.names]

    def checked(self, name: str, value: Any) -> Any:
        """A value of the column's own type, or None; TypeError for another type."""
        _cell(name, value, *self.kinds[name])
        return value if value is None else self.kinds[name][0](value)

    def parse(self, rows: Iterable[list[str]]) -> Iterator[Any]:
        """Rows of the row type from text cells."""
        for cells in rows:
            pairs = zip(self.names, cells, strict=True)
            yield self.row(**{name: _value(cell, *self.kinds[name]) for name, cell in pairs})


def _fields(row: type) -> tuple[str, ...]:
    if dataclasses.is_dataclass(row):
        return tuple(field.name for field in dataclasses.fields(row))
    if issubclass(row, tuple) and hasattr(row, "_fields"):
        return row._fields
    raise Refused(f"row type {row.__name__} must be a NamedTuple or a dataclass")


def _kind(row: type, name: str, hint: Any) -> tuple[type, bool]:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    plain = [option for option in options if option is not type(None)]
    if len(plain) != 1 or plain[0] not in PLAIN:
        raise Refused(f"column {name} of {row.__name__} must be bool, int, float or str, or one of these or None")
    return plain[0], len(options) > 1


def _cell(name: str, value: Any, kind: Any, optional: bool) -> str:
    if value is None and optional:
        return ""
    if not isinstance(value, ACCEPTED[kind]) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"column {name} expects {kind.__name__}, got {value!r}")
    return str(kind(value))


def _value(cell: str, kind: type, optional: bool) -> Any:
    if optional and cell == "":
        return None
    return cell == "True" if kind is bool else kind(cell)
