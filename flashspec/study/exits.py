"""How good an exit is: counted against deeper layers on given text, and as recorded during its training. No clock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from flashspec.decoding.models import Models, folder_of
from flashspec.heads.base import DenseHead
from flashspec.measure.prompts import Prompt, load_prompts
from flashspec.models.exits import rows_at
from flashspec.parameters import presets_of
from flashspec.study.drafts import folders, short_name, target_of
from flashspec.study.experiment import Experiment, by
from flashspec.study.frames import DataFrame
from flashspec.typed import among, at_least

CURVE = "curve.jsonl"
COUNTS = ("positions", "same", "right", "both", "in_top_5")
MEANS = ("overlap", "loss", "against_loss")


@dataclass(frozen=True)
class Params:
    """Which exits to judge, and where: on the text of prompts, and in the curve that training left beside the weights."""

    target: tuple[str, ...] = ("reference",)  # targets: shipped names or folders
    depth: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)  # exits, in layers; depths above the target's top are left out
    source: tuple[str, ...] = ("prompts", "training")  # what to read: prompts (text), training (the curve beside the weights)
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 4  # prompts of each kind, the first ones

    def __post_init__(self) -> None:
        among(self, source=("prompts", "training"))
        at_least(self, depth=1, per_kind=1)


@dataclass(frozen=True)
class Row:
    """One depth against a deeper one on all positions of one kind of prompt, or at one step of training.

    `same`: the two best tokens agree. `right`: the shallower one's is the full model's. `both`: all three agree. `in_top_5`:
    the deeper one's best token is among the shallower one's five best. `overlap` (sum of min(p, q), the acceptance of
    speculative sampling at T = 1) and the losses at the text's next token, in nats, are means per position.
    """

    target: str
    source: str
    depth: int
    against: int
    layers: int
    overlap: float
    loss: float
    against_loss: float
    kind: str = ""
    adapted: bool = False
    step: int | None = None
    positions: int | None = None
    same: int | None = None
    right: int | None = None
    both: int | None = None
    in_top_5: int | None = None


def measure(params: Params) -> Iterator[Row]:
    """Compare every exit with every deeper one, position by position, and read the curves of their training."""
    for target in params.target:
        for source in params.source:
            yield from (counted if source == "prompts" else trained)(params, target)


def counted(params: Params, target: str) -> Iterator[Row]:
    """All pairs of depths, one row per kind of prompt. Raises ValueError where no exit is below the target's top."""
    models = target_of(target, "float32", "dense")
    layers = models.target.config.layers
    depths = [*sorted({depth for depth in params.depth if depth < layers}), layers]
    if len(depths) == 1:
        raise ValueError(f"depth must name a layer below the target's {layers}, got {params.depth}")
    prompts = load_prompts(params.prompts or None, params.per_kind, models)
    for kind in dict.fromkeys(prompt.kind for prompt in prompts):
        sums = torch.stack([compared(models, prompt, depths) for prompt in prompts if prompt.kind == kind]).sum(0)
        who: dict[str, Any] = {"target": short_name(target), "source": "prompts", "kind": kind, "layers": layers}
        for (low, high), found in zip(combinations(depths, 2), sums.tolist(), strict=True):
            counts = dict(zip(COUNTS, map(round, found), strict=False))
            means = {name: value / found[0] for name, value in zip(MEANS, found[len(COUNTS) :], strict=True)}
            yield Row(depth=low, against=high, adapted=low in models.exits, **who, **counts, **means)


@torch.inference_mode()
def compared(models: Models, prompt: Prompt, depths: list[int]) -> Tensor:
    """COUNTS and sums of MEANS for every pair of depths on one prompt, a row [pairs, 8] each."""
    ids = torch.tensor(prompt.ids)
    rows = rows_at(models.target, ids[None, :-1], tuple(depths), models.exits)
    heads = [DenseHead(models.exit_norm(depth), models.target.head_weight) for depth in depths]
    logs = [head(rows[depth]).logits.log_softmax(-1).double() for head, depth in zip(heads, depths, strict=True)]
    best, five = [log.argmax(-1) for log in logs], [log.topk(min(5, log.shape[1])).indices for log in logs]
    losses, lines = [-log.gather(1, ids[1:, None]).sum() for log in logs], []
    for low, high in combinations(range(len(depths)), 2):
        same, right = best[low] == best[high], best[low] == best[-1]
        counts = [same.sum(), right.sum(), (same & right).sum(), (five[low] == best[high][:, None]).any(1).sum()]
        means = [torch.minimum(logs[low], logs[high]).exp().sum(), losses[low], losses[high]]
        lines.append([len(ids) - 1, *counts, *means])
    return torch.tensor(lines, dtype=torch.float64)


def trained(params: Params, target: str) -> Iterator[Row]:
    """The curve that `flashspec train` left beside a model's weights; no rows without such a file."""
    path = folder_of(target, "target") / CURVE
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        point = json.loads(line)
        depths = sorted(int(name.removeprefix("loss_")) for name in point if name.startswith("loss_"))
        for depth in depths[:-1]:  # none in the curve of a draft
            whole: dict[str, Any] = {
                "target": short_name(target),
                "source": "training",
                "against": depths[-1],
                "layers": depths[-1],
            }
            means = (point[f"accept_{depth}"], point[f"loss_{depth}"], point[f"loss_{depths[-1]}"])
            yield Row(depth=depth, step=int(point["step"]), **whole, **dict(zip(MEANS, means, strict=True)))


def shares(frame: DataFrame) -> DataFrame:
    """Shares of positions by target and pair of depths, all kinds together, and the errors of `against` as a verifier.

    `wrongly_accepted`: of what the verifier at `against` accepts, the share that the full model rejects. `wrongly_rejected`: of
    what it rejects, the share that the full model would have accepted.
    """
    rows = frame[frame["source"] == "prompts"]
    sums = rows.assign(**{name: rows[name] * rows["positions"] for name in MEANS})
    sums = sums.groupby(["target", "depth", "against", "layers"])[[*COUNTS, *MEANS]].sum().reset_index()
    n, same, right, both, five = (sums[name] for name in COUNTS)
    return sums.assign(
        **{name: sums[name] / n for name in MEANS},
        agreement=same / n,
        top_5=five / n,
        wrongly_accepted=(same - both) / same.where(same > 0),
        wrongly_rejected=(right - both) / (n - same).where(n > same),
    )


EXPERIMENT = Experiment("exits", Params, Row, measure, False, by("target"), folders, presets_of("exits", Params))
