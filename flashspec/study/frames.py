"""Pandas frames, imported on first use: their type, making and joining them, and selecting lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import pandas

DataFrame: TypeAlias = "pandas.DataFrame"


def framed(lines: Any, columns: Sequence[str] | None = None) -> DataFrame:
    """A table of these lines with these columns."""
    import pandas

    return pandas.DataFrame(lines, columns=columns)


def joined(frames: Iterable[DataFrame]) -> DataFrame:
    """Tables stacked and renumbered; an empty one for no tables."""
    import pandas

    found = list(frames)
    return pandas.concat(found, ignore_index=True) if found else framed([])


def having(table: DataFrame, values: Mapping[str, Any]) -> Any:
    """Which lines of a table have these values."""
    return np.logical_and.reduce([np.ones(len(table), bool), *(table[name] == value for name, value in values.items())])


def groups(table: DataFrame, by: Sequence[str], sort: bool = True) -> Iterator[tuple[dict[str, Any], DataFrame]]:
    """What the lines of each group share, by column, and the lines."""
    for values, lines in table.groupby(list(by), dropna=False, sort=sort):
        yield dict(zip(by, values, strict=True)), lines


def pivoted(table: DataFrame, down: Sequence[str], across: str, values: str) -> DataFrame:
    """The first value for each line and column, lines in their order, with the values of `down` as columns too."""
    found = table.groupby([*down, across], dropna=False)[values].first().unstack(across).reset_index()
    return table[list(down)].drop_duplicates().merge(found, on=list(down))
