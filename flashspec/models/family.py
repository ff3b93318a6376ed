"""Drafts by design: what is cut out of a target and how it is trained, and a family of them for the reference target.

Every member keeps the target's hidden width, so they differ in the body alone. Those named wide- or deep- have the body
parameters of one layer of the target within TOLERANCE, wide2- and deep2- of two; the others are trained otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from flashspec.models.config import ModelConfig
from flashspec.typed import at_least, one_of

POINTS = Path(__file__).parents[1] / "data" / "family.json"
DESIGNED = "designed"  # the point that ships
TOLERANCE = 0.05
CUTS = ("layers", "heads", "kv_heads", "ffn")


@dataclass(frozen=True)
class Design:
    """What is cut out of a target and how it is trained; the same design gives the same draft."""

    layers: int = 2  # layers kept
    heads: int = 0  # query heads kept in each layer; 0 means all
    kv_heads: int = 0  # key/value heads kept in each layer; 0 means all
    ffn: int = 0  # feed-forward channels kept in each layer; 0 means all
    steps: int = 200  # training steps; 0 only prunes
    decay: int = 150  # steps of falling learning rate at the end
    warmup: int = 10  # steps of rising learning rate at the start
    muon_lr: float = 0.01  # learning rate of the matrices
    adam_lr: float = 1e-3  # learning rate of embedding, head and norms
    sequences: int = 4  # texts per training step
    length: int = 256  # tokens per text
    written: int = 512  # texts that the target writes to learn from; 0 uses the given text
    prompt: int = 32  # tokens of the given text that start each of them
    distilled: bool = True  # whether to learn the target's distributions, or only its texts
    variation: float = 1.0  # weight of total variation beside the KL divergence
    save_every: int = 50  # steps between checkpoints
    dtype: str = "float32"  # number format of products in training; bfloat16 is faster on processors that support it
    seed: int = 1  # seed of windows, texts and batches

    def __post_init__(self) -> None:
        at_least(self, layers=1, heads=0, kv_heads=0, ffn=0, steps=0, decay=0, warmup=0, muon_lr=0, adam_lr=0)
        at_least(self, sequences=1, length=2, written=0, prompt=1, variation=0, save_every=1, seed=0)
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {self.seed}")
        one_of("dtype", self.dtype, ("float32", "bfloat16"))
        if self.prompt > self.length:
            raise ValueError(f"a text of {self.length} tokens has no room for a prompt of {self.prompt}; shorten the prompt")

    def of(self, target: ModelConfig) -> ModelConfig:
        """The draft's configuration; ValueError where this design does not fit into the target."""
        found = replace(target, **{name: getattr(self, name) or getattr(target, name) for name in CUTS})
        for name in CUTS:
            mine, theirs = getattr(found, name), getattr(target, name)
            if not 1 <= mine <= theirs:
                raise ValueError(f"the draft is bigger than its target: {name} must lie between 1 and {theirs}, got {mine}")
        most = target.heads // target.kv_heads
        if found.heads // found.kv_heads > most:
            raise ValueError(f"{found.heads} query heads on {found.kv_heads} key/value heads: at most {most} share one here")
        if target.opt and found.heads != target.heads:
            raise ValueError("an OPT checkpoint cannot say that it has fewer heads: keep all, and choose layers and ffn")
        return found


FAMILY: dict[str, Design] = msgspec.json.decode(POINTS.read_bytes(), type=dict[str, Design])
