"""The points of a grid: values by commas and ranges, crossed or paired, all of them or a sample."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from flashspec.study.parameters import MANY, UNFIT, Refused, at_least, listed, parse

LARGEST_FILE = 2**16
LARGEST_GRID = 100 * MANY  # points, of which a sample is drawn


@dataclass(frozen=True)
class Grid:
    """Values by parameter: every combination of `product`, with the pairs of `zip`; of these a sample, or all."""

    product: dict[str, Any] = field(default_factory=dict)
    zip: dict[str, Any] = field(default_factory=dict)
    sample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sample is not None:
            at_least(self, sample=1)
        if both := sorted(self.product.keys() & self.zip.keys()):
            raise Refused(f"parameter {both[0]!r} is in the product and in the zip; leave it in one")

    def points(self) -> list[dict[str, Any]]:
        """The values of each point by parameter, the last one running fastest; one empty point for no values."""
        axes = [[{name: value} for value in _values(name, given)] for name, given in self.product.items()]
        if self.zip:
            paired = {name: _values(name, given) for name, given in self.zip.items()}
            if len(set(map(len, paired.values()))) > 1:
                lengths = ", ".join(f"{name} has {len(values)}" for name, values in paired.items())
                raise Refused(f"zip takes lists of one length, but {lengths}")
            axes.insert(0, [dict(zip(paired, each, strict=True)) for each in zip(*paired.values(), strict=True)])
        total = prod(map(len, axes))
        wanted = min(self.sample or total, total)
        if wanted > MANY or total > LARGEST_GRID:
            raise Refused(f"a sweep takes at most {MANY} points, and this grid has {total}; give fewer values, or --sample")
        chosen = set(random.Random(self.seed).sample(range(total), wanted))
        drawn = [each for number, each in enumerate(product(*axes)) if number in chosen]
        return [{name: value for part in each for name, value in part.items()} for each in drawn]


def read(path: Path) -> Grid:
    """The grid of a YAML file; Refused where it is none."""
    import yaml

    try:
        if path.stat().st_size > LARGEST_FILE:
            raise TypeError(f"it has more than {LARGEST_FILE} bytes")
        text = path.read_bytes()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise TypeError("it holds aliases, by which a small file becomes a large one")
        found = yaml.safe_load(text)
        if not isinstance(found, dict):
            raise TypeError("it holds no names with values")
        return parse(Grid, {str(name): value for name, value in found.items()})
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"{path.name} is no grid ({reason:.200}); write `product: {{k: 1..12}}`, zip, sample or seed") from error


def spoken(text: str) -> tuple[str, str]:
    """Name and values of `NAME=VALUES`, as a command line has them."""
    name, given, values = text.partition("=")
    if not (name and given):
        raise Refused(f"{text!r:.80} names no values; write NAME=VALUES, as in k=1..12 or head=dense,flash")
    return name, values


def _values(name: str, given: Any) -> list[Any]:
    try:
        found = listed(given) if isinstance(given, str) else given if isinstance(given, list) else [given]
    except UNFIT as error:
        raise Refused(f"the values of {name!r} cannot be read ({error}): write 1..12, dense,flash or [[1, 2], 3]") from error
    if not 0 < len(found) <= MANY:
        raise Refused(f"parameter {name!r} has {len(found) or 'no'} values; give 1 to {MANY} of them")
    return found
