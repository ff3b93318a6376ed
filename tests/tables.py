"""Made-up results and the figures drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas

from flashspec.study import figures
from flashspec.study.style import Picture

MACHINE = "a made-up machine, 2026-01-01"


def results(name: str, rows: list[dict] | pandas.DataFrame) -> SimpleNamespace:
    """What `Results` offers to a figure."""
    return SimpleNamespace(frame=pandas.DataFrame(rows), machine=MACHINE, path=Path(f"results/{name}/0123abcd.csv"), origin={})


def drawn(**makers: list[Callable]) -> dict[str, Callable[[], Picture]]:
    """Figures by name, each drawn from the tables that its functions make."""
    return {name: partial(picture, name, made) for name, made in makers.items()}


def picture(name: str, makers: list[Callable]) -> Picture:
    """One figure of freshly made tables."""
    return getattr(figures, name)(*(make() for make in makers))
