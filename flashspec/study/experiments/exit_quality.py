"""How good every depth of a model is: agreement with the depths above it, top-k containment, and the verifier's own errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.models import Models
from flashspec.heads.dense import DenseHead
from flashspec.measure.prompts import Prompt, load_prompts
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import at_least, folders, models_of
from flashspec.train.exits import rows_at

CONTAINED = (2, 5, 10)


@dataclass(frozen=True)
class Params:
    """Which depths to look at, on which prompts; counts only, no clock. The text read is the prompts' own."""

    target: str = "reference"  # target model: shipped name or folder
    draft: str = "main"  # draft model that is loaded beside it
    depths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)  # exits; the whole model is always among them
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 8  # prompts of each kind

    def __post_init__(self) -> None:
        at_least(self, depths=1, per_kind=1)


class Row(NamedTuple):
    """One depth against a deeper one on all positions of one kind of prompt; whole numbers but the three sums.

    `same`: the two best tokens agree. `right`: the shallower one's is the whole model's. `both`: all three agree. So, with a
    draft at `depth` and a verifier at `against`, same - both are false acceptances and right - both false rejections.
    `in_top_k`: the deeper one's best token is among the shallower one's k best. `overlap` sums min(p, q) over positions,
    `loss` and `against_loss` the surprise at the text's next token, in nats.
    """

    depth: int
    against: int
    layers: int
    adapted: bool
    kind: str
    positions: int
    same: int
    right: int
    both: int
    in_top_2: int
    in_top_5: int
    in_top_10: int
    overlap: float
    loss: float
    against_loss: float


def measure(params: Params) -> Iterator[Row]:
    """Compare every depth with every deeper one, position by position, on the text of the prompts."""
    models = models_of(params.target, params.draft, "float32", "dense")
    layers = models.target.config.layers
    if max(params.depths) >= layers:
        raise ValueError(f"depths must lie below the target's {layers} layers, got {params.depths}")
    prompts = load_prompts(params.prompts or None, params.per_kind, models)
    for kind in dict.fromkeys(prompt.kind for prompt in prompts):
        yield from rows_of(models, [p for p in prompts if p.kind == kind], (*params.depths, layers))


def rows_of(models: Models, prompts: list[Prompt], depths: tuple[int, ...]) -> Iterator[Row]:
    """All pairs of depths on prompts of one kind, summed."""
    sums: dict[tuple[int, int], Tensor] = {}
    for prompt in prompts:
        for pair, found in compared(models, prompt, depths).items():
            sums[pair] = sums.get(pair, torch.zeros(len(found), dtype=torch.float64)) + found
    for (depth, against), total in sums.items():
        whole, mean = [round(v) for v in total[:-3].tolist()], total[-3:].tolist()
        yield Row(depth, against, depths[-1], depth in models.exits, prompts[0].kind, *whole, *mean)


@torch.inference_mode()
def compared(models: Models, prompt: Prompt, depths: tuple[int, ...]) -> dict[tuple[int, int], Tensor]:
    """The numbers of a Row for every pair of depths on one prompt."""
    ids = torch.tensor(prompt.ids)
    rows = rows_at(models.target, ids[None, :-1], depths)
    logs = {d: _head(models, d)(r).logits.log_softmax(-1).double() for d, r in rows.items()}
    best = {d: log.argmax(-1) for d, log in logs.items()}
    pairs = [(d, a) for d in depths for a in depths if d < a]
    return {(d, a): _pair(logs[d], logs[a], best[depths[-1]], ids[1:]) for d, a in pairs}


def _head(models: Models, depth: int) -> DenseHead:
    return DenseHead(models.exit_norm(depth), models.target.head_weight)


def _pair(low: Tensor, high: Tensor, final: Tensor, text: Tensor) -> Tensor:
    mine, theirs = low.argmax(-1), high.argmax(-1)
    same, right = mine == theirs, mine == final
    width = min(max(CONTAINED), low.shape[1])
    among = low.topk(width).indices == theirs[:, None]
    contained = [among[:, :k].any(1).sum() for k in CONTAINED]
    overlap = torch.minimum(low, high).exp().sum()
    losses = [-log.gather(1, text[:, None]).sum() for log in (low, high)]
    counts = [torch.tensor(len(text)), same.sum(), right.sum(), (same & right).sum(), *contained, overlap, *losses]
    return torch.stack([value.double() for value in counts])


SMOKE = Params(depths=(2, 4), per_kind=1)
EXPERIMENT = Experiment("exit_quality", Params, Row, measure, measured=False, models=folders, presets={"smoke": SMOKE})
