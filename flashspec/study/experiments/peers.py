"""Beside transformers: plain and assisted generation with the same two models, the same k, greedy, in turns with ours."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from flashspec.decoding.method import METHODS
from flashspec.decoding.models import Models
from flashspec.measure.bench import Contestant, Text, interleave, text_digest
from flashspec.measure.certificate import Certificate, certify
from flashspec.measure.contest import Decoding, Entry
from flashspec.measure.peers import Peers
from flashspec.measure.prompts import Prompt, load_prompts
from flashspec.model.export import save_transformer
from flashspec.scores import Sampling
from flashspec.study.experiment import Experiment
from flashspec.study.experiments.end_to_end import evidence
from flashspec.study.pairs import among, at_least, folders, models_of
from flashspec.study.rows import Compared, Turn

OURS, THEIRS = "flashspec", "transformers"


@dataclass(frozen=True)
class Params:
    """Which pair to decode greedily with both engines; needs the extra `peers`."""

    target: str = "reference"  # target model: shipped name or folder, dequantised on both sides
    draft: str = "main"  # draft model: shipped name or folder
    ks: tuple[int, ...] = (2, 4)  # drafted tokens a round, the same on both sides
    dtypes: tuple[str, ...] = ("bfloat16", "float32")  # of both sides
    prompts: str = ""  # prompts file; empty means the shipped one
    per_kind: int = 1  # prompts of each kind
    new_tokens: int = 48  # tokens emitted a prompt
    repeats: int = 5  # kept turns

    def __post_init__(self) -> None:
        at_least(self, ks=1, per_kind=1, new_tokens=1, repeats=1)
        among("dtypes", self.dtypes, ("bfloat16", "float32"))


@dataclass(frozen=True)
class Decode:
    """What an engine decoded; k is 0 for plain decoding."""

    engine: str
    mode: str
    dtype: str
    k: int
    kind: str
    prompt: int
    emitted: int


@dataclass(frozen=True)
class Row(Compared, Turn, Decode):
    """One engine and mode on one prompt in one turn.

    Divergence columns compare with flashspec's plain text of the same dtype, scored by the engine that wrote the other
    text; `twin_digest` is the same run's text in float32.
    """


class Sides(NamedTuple):
    """Both engines holding one pair in one dtype."""

    ours: Models
    theirs: Peers


Label = tuple[str, int]


def measure(params: Params) -> Iterator[Row]:
    """Decode the same prompts with transformers and flashspec, plain and with a draft, in turns."""
    prompts = load_prompts(params.prompts or None, params.per_kind)
    with tempfile.TemporaryDirectory() as folder:
        sides = {dtype: sides_of(params, dtype, Path(folder)) for dtype in params.dtypes}
        twin = sides.get("float32") or sides_of(params, "float32", Path(folder))
    for number, prompt in enumerate(prompts):
        twins = {label: tuple(call()) for label, call in calls_of(twin, prompt, params).items()}
        for dtype, both in sides.items():
            for row in rows_of(both, prompt, params, twins):
                yield replace(row, dtype=dtype, prompt=number)


def sides_of(params: Params, dtype: str, folder: Path) -> Sides:
    """Load our pair, export it as dense checkpoints and let transformers load those in the same dtype."""
    models = models_of(params.target, params.draft, dtype, "dense")
    saved = [folder / dtype / name for name in ("target", "draft")]
    for model, place in zip((models.target, models.draft), saved, strict=True):
        assert model is not None
        save_transformer(model, place, dtype)
    return Sides(models, Peers.load(saved[0], saved[1], getattr(torch, dtype)))


def calls_of(sides: Sides, prompt: Prompt, params: Params) -> dict[Label, Contestant]:
    """Contestants by engine and k, plain decoding being k = 0."""
    calls: dict[Label, Contestant] = {}
    for k in (0, *params.ks):
        method = METHODS["baseline"] if k == 0 else replace(METHODS["dense"], k=k)
        calls[OURS, k] = Decoding(sides.ours, Entry(OURS, method, Sampling()), prompt, params.new_tokens)
        calls[THEIRS, k] = sides.theirs.contestant(prompt.ids, params.new_tokens, k or None)
    return calls


def rows_of(sides: Sides, prompt: Prompt, params: Params, twins: dict[Label, Text]) -> Iterator[Row]:
    """Rows of one prompt in one dtype, which the caller fills in."""
    calls = {f"{engine} {k}": call for (engine, k), call in calls_of(sides, prompt, params).items()}
    plain: Text = ()
    known: dict[Text, Certificate | None] = {}
    for timing in interleave(calls, params.repeats, 1):
        engine, k = timing.contestant.split()
        plain = plain or timing.tokens
        if timing.tokens not in known:
            known[timing.tokens] = certify(plain, timing.tokens, prompt.ids, sides.theirs.scorer())
        yield Row(
            engine=engine, mode="assisted" if int(k) else "plain", dtype="", k=int(k), kind=prompt.kind, prompt=0,
            emitted=timing.emitted, seconds=timing.seconds, repeat=timing.repeat, text_digest=timing.digest,
            twin_digest=text_digest(twins[engine, int(k)]), **evidence(known[timing.tokens]),
        )  # fmt: skip


SMOKE = Params(ks=(2,), dtypes=("float32",), new_tokens=8, repeats=1)
EXPERIMENT = Experiment("peers", Params, Row, measure, models=folders, presets={"smoke": SMOKE})
