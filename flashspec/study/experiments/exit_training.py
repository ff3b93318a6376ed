"""How the exits of a trained model came to be: held-out loss and overlap by depth and step, as its training wrote them down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from flashspec.decoding.models import folder_of
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import folders

CURVE = "curve.jsonl"


@dataclass(frozen=True)
class Params:
    """Whose training to read; nothing is computed anew."""

    target: str = "reference"  # target model: shipped name or folder


class Row(NamedTuple):
    """One depth at one step of training: nats a held-out token, and sum_v min(p, q) with the whole model, 1 at its own depth."""

    step: int
    depth: int
    layers: int
    loss: float
    overlap: float


def measure(params: Params) -> Iterator[Row]:
    """Read the curve that lies beside a model's weights, as `flashspec train` leaves it."""
    path = folder_of(params.target, "target") / CURVE
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {CURVE}; models that `flashspec train` finished bring one")
    for line in path.read_text(encoding="utf-8").splitlines():
        yield from rows_of(json.loads(line))


def rows_of(point: dict[str, float]) -> Iterator[Row]:
    """One row a depth of one evaluation."""
    depths = depths_of(point)
    for depth in depths:
        yield Row(int(point["step"]), depth, depths[-1], point[f"loss_{depth}"], point[f"accept_{depth}"])


def depths_of(figures: Mapping[str, Any]) -> list[int]:
    """Depths whose losses are among these figures, the whole model's last."""
    return sorted(int(name.removeprefix("loss_")) for name in figures if name.startswith("loss_"))


SMOKE = Params()
EXPERIMENT = Experiment("exit_training", Params, Row, measure, measured=False, models=folders, presets={"smoke": SMOKE})
