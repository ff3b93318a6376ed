"""Hidden rows of a draft on text that it never saw, to calibrate heads on and to judge them by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from flashspec.decoding.generate import generate
from flashspec.heads.base import Head
from flashspec.heads.candidates import ShortlistHead, ranked_by_frequency
from flashspec.heads.dense import DenseHead
from flashspec.heads.registry import RANKED, Origin, head_named
from flashspec.measure.prompts import Prompt, load_prompts
from flashspec.models.pairs import PAIRS
from flashspec.models.reader import SpanReader
from flashspec.models.transformer import Transformer
from flashspec.sampling import Dice, Sampling
from flashspec.study.drafts import drafts_of, pair_of

AT_ONCE = 256
LIVE = ("in_context",)  # heads that learn from verifications, which stored rows have none of


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows [n, hidden] of a draft before its final norm: half of the texts to tune on, half to judge by.

    `kinds` gives the kind of text of every judging row; `counted` are the ids of the tuning texts, `written` the target's own.
    """

    draft: Transformer
    tuning: Tensor
    judging: Tensor
    kinds: tuple[str, ...]
    counted: Tensor
    written: Tensor

    @cached_property
    def dense(self) -> DenseHead:
        """The head that the others are compared with."""
        return DenseHead(self.draft.norm, self.draft.vocabulary)

    @cached_property
    def chances(self) -> Tensor:
        """The dense head's probabilities [n, vocab] at every judging row."""
        return torch.cat([self.dense(part).logits.softmax(1) for part in self.judging.split(AT_ONCE)])

    @cached_property
    def wanted(self) -> Tensor:
        """The dense head's best id [n] for every judging row."""
        return torch.cat([self.dense(part).logits.argmax(1) for part in self.judging.split(AT_ONCE)])

    def bands(self, edges: tuple[int, ...]) -> dict[str, Tensor]:
        """Judging rows [n] by the rank of their wanted id in the tuning texts: up to each edge, then the rest."""
        vocab = self.dense.vocab_size
        ranks = 1 + ranked_by_frequency(self.counted, vocab).argsort()[self.wanted]
        pairs = zip((0, *edges), (*edges, vocab), strict=True)
        return {f"{low + 1}-{high}": (ranks > low) & (ranks <= high) for low, high in pairs}

    def head(self, name: str) -> Any:
        """A head of the draft by name; those that rank ids count them in the tuning texts."""
        origin = Origin(self.draft.vocabulary, self.draft.norm)
        if name not in RANKED:
            return head_named(name, origin)
        ids = self.written if name == "vocab_trim" else self.counted
        return ShortlistHead.build(origin.wide, ranked_by_frequency(ids, self.dense.vocab_size), origin.norm)


@lru_cache(maxsize=1)
def held_out(params: Any, name: str) -> HeldOut:
    """Let the target continue every prompt and a draft read the result; ValueError where no kind has two prompts.

    Published models keep the bits of their files, others run in bfloat16. Only the answer to an instruction is judged.
    """
    (folder,) = drafts_of((name,)).values()
    models = pair_of(params.target, name, folder, *(("auto", "auto") if params.target in PAIRS else ("bfloat16", "dense")))
    draft, sampling = models.model("draft"), Sampling(params.temperature, seed=params.seed)
    asked = {"max_new_tokens": params.new_tokens, "stop": ()}
    written, whole, rows, kinds = [], [], [], tuple[str, ...]()
    for half in halves(load_prompts(params.prompts or None, params.per_kind, models)):
        texts = [generate(models, list(prompt.ids), "baseline", sampling, **asked).tokens for prompt in half]
        read = [[*prompt.ids, *text] for prompt, text in zip(half, texts, strict=True)]
        written.append(torch.tensor(sum(texts, [])))
        whole.append(torch.tensor(sum(read, [])))
        own = [rows_of(draft, ids)[prompt.chat * (len(prompt.ids) - 1) :] for prompt, ids in zip(half, read, strict=True)]
        rows.append(torch.cat(own))
        kinds = tuple(prompt.kind for prompt, each in zip(half, own, strict=True) for _ in each)
    tuning, judging = rows
    return HeldOut(draft, tuning, judging, kinds, whole[0], written[0])


def halves(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to tune on and prompts to judge by, alternating within each kind; ValueError where no kind has two."""
    found, seen = (list[Prompt](), list[Prompt]()), Counter[str]()
    for prompt in prompts:
        found[seen[prompt.kind] % 2].append(prompt)
        seen[prompt.kind] += 1
    if not found[1]:
        raise ValueError("two prompts of a kind are needed, one to tune on and one to judge by; give more, or a larger per_kind")
    return found


@torch.inference_mode()
def rows_of(model: Transformer, ids: Sequence[int]) -> Tensor:
    """A model's rows [n, hidden] over a text, as a decode reads them, in float32."""
    reader = SpanReader(model, context=len(ids) + 1)
    reader.read(torch.tensor(ids))
    return reader.rows[: len(ids)].float().clone()


@torch.inference_mode()
def judged(head: Head, held: HeldOut) -> tuple[Tensor, Tensor]:
    """For judging rows [n], whether the head's best id is the dense head's, and the dense mass that it scores."""
    best, mass = [], []
    for rows, chances in zip(held.judging.split(AT_ONCE), held.chances.split(AT_ONCE), strict=True):
        scores = head(rows, torch.arange(len(rows)), Dice(0))
        best.append(scores.pick(scores.logits.argmax(1)))
        found = chances if scores.ids is None else chances.gather(1, scores.ids)
        mass.append(found.masked_fill(scores.logits == -torch.inf, 0.0).sum(1))
    return torch.cat(best) == held.wanted, torch.cat(mass)
