"""Hidden rows of a draft on text that it never saw, to calibrate heads on and to judge them by."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from flashspec.decoding.generate import generate
from flashspec.heads.base import DenseHead, Head
from flashspec.heads.candidates import ShortlistHead, ranked_by_frequency
from flashspec.heads.registry import RANKED, Origin, head_named
from flashspec.measure.prompts import load_prompts, numbered
from flashspec.models.folder import PAIRS
from flashspec.models.reader import SpanReader
from flashspec.models.transformer import Transformer
from flashspec.sampling import Sampling
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
    def answers(self) -> tuple[Tensor, Tensor]:
        """The dense head's probabilities [n, vocab] at every judging row, and its best ids [n]."""
        found = [(logits.softmax(1), logits.argmax(1)) for logits in (self.dense(p).logits for p in self.judging.split(AT_ONCE))]
        chances, wanted = map(torch.cat, zip(*found, strict=True))
        return chances, wanted

    def bands(self, edges: tuple[int, ...]) -> dict[str, Tensor]:
        """Judging rows [n] by the rank of their wanted id in the tuning texts: up to each edge, then the rest."""
        vocab = self.dense.vocab_size
        ranks = 1 + ranked_by_frequency(self.counted, vocab).argsort()[self.answers[1]]
        ends = [0, *sorted(set(edges)), vocab]
        return {f"{low + 1}-{high}": (ranks > low) & (ranks <= high) for low, high in pairwise(ends)}

    def head(self, name: str) -> Any:
        """A head of the draft by name; those that rank ids count them in the tuning texts."""
        origin = Origin(self.draft.vocabulary, self.draft.norm)
        if name not in RANKED:
            return head_named(name, origin)
        ids = self.written if name == "vocab_trim" else self.counted
        return ShortlistHead.build(origin.wide, ranked_by_frequency(ids, self.dense.vocab_size), origin.norm)


@lru_cache(maxsize=1)
def held_out(params: Any, name: str) -> HeldOut:
    """Let the target continue every prompt and a draft read the result; every second one of a kind is to judge by.

    ValueError where no kind has two. Published models keep the bits of their files, others run in bfloat16. Only the answer to
    an instruction is judged.
    """
    (folder,) = drafts_of((name,)).values()
    models = pair_of(params.target, name, folder, *(("auto", "auto") if params.target in PAIRS else ("bfloat16", "dense")))
    draft, sampling = models.model("draft"), Sampling(params.temperature, seed=params.seed)
    asked = {"max_new_tokens": params.new_tokens, "stop": ()}
    prompts = load_prompts(params.prompts or None, params.per_kind, models)
    if max(Counter(prompt.kind for prompt in prompts).values(), default=0) < 2:
        raise ValueError("two prompts of a kind are needed, one to tune on and one to judge by; give more, or a larger per_kind")
    rows = (list[Tensor](), list[Tensor]())
    kinds, counted, written = list[str](), list[int](), list[int]()
    for before, prompt in numbered(prompts):
        text = generate(models, list(prompt.ids), "baseline", sampling, **asked).tokens
        ids = [*prompt.ids, *text]
        reader = SpanReader(draft, context=len(ids) + 1)
        with torch.inference_mode():
            reader.read(torch.tensor(ids))
            own = reader.rows[prompt.chat * (len(prompt.ids) - 1) : len(ids)].float().clone()
        rows[before % 2].append(own)
        if before % 2:
            kinds += [prompt.kind] * len(own)
        else:
            counted, written = counted + ids, written + text
    tuning, judging = map(torch.cat, rows)
    return HeldOut(draft, tuning, judging, tuple(kinds), torch.tensor(counted), torch.tensor(written))


@torch.inference_mode()
def judged(head: Head, held: HeldOut) -> tuple[Tensor, Tensor]:
    """For judging rows [n], whether the head's best id is the dense head's, and the dense mass that it scores."""
    (chances, wanted), best, mass = held.answers, [], []
    for rows, part in zip(held.judging.split(AT_ONCE), chances.split(AT_ONCE), strict=True):
        scores = head(rows)
        best.append(scores.pick(scores.logits.argmax(1)))
        found = part if scores.ids is None else part.gather(1, scores.ids)
        mass.append(found.masked_fill(scores.logits == -torch.inf, 0.0).sum(1))
    return torch.cat(best) == wanted, torch.cat(mass)
