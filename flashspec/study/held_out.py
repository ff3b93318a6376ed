"""Hidden rows of a draft on text that it never saw: what heads are calibrated on, and what they are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from flashspec.decoding.models import Models
from flashspec.heads.base import Head
from flashspec.heads.candidates import ShortlistHead, ranked_by_frequency
from flashspec.heads.dense import DenseHead
from flashspec.heads.flash import FlashHead
from flashspec.heads.registry import RANKED, Origin, head_named
from flashspec.measure.contest import Entry, texts
from flashspec.measure.prompts import Prompt
from flashspec.models.reader import SpanReader
from flashspec.models.transformer import Transformer
from flashspec.sampling import Dice
from flashspec.study.pairs import models_of

AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows [n, hidden] of one draft before its final norm: every second text of a kind to tune on, the others to judge by.

    `kinds` names the kind of text of every judging row; `counted` holds the ids of the tuning texts, `written` those among
    them that the target wrote.
    """

    models: Models
    tuning: Tensor
    judging: Tensor
    kinds: tuple[str, ...]
    counted: Tensor
    written: Tensor

    @property
    def draft(self) -> Transformer:
        """The model whose rows these are."""
        return self.models.model("draft")

    @cached_property
    def dense(self) -> DenseHead:
        """The head that the others are compared with."""
        return DenseHead(self.draft.norm, self.draft.head_weight)

    @cached_property
    def chances(self) -> Tensor:
        """The dense head's probabilities [n, vocab] at every judging row."""
        return torch.cat([self.dense(part).logits.softmax(1) for part in self.judging.split(AT_ONCE)])

    @cached_property
    def wanted(self) -> Tensor:
        """The dense head's best id [n] for every judging row."""
        return self.chances.argmax(1)

    def ranked(self, name: str) -> Tensor:
        """Ids by frequency in the tuning texts, or in what the target wrote of them for "vocab_trim"."""
        return ranked_by_frequency(self.written if name == "vocab_trim" else self.counted, self.dense.vocab_size)

    def bands(self, edges: tuple[int, ...]) -> dict[str, Tensor]:
        """Judging rows [n] by how frequent their wanted id is in the tuning texts: ranks up to each edge, then the rest."""
        place = torch.empty(self.dense.vocab_size, dtype=torch.int64)
        place[self.ranked("fr_spec")] = torch.arange(1, self.dense.vocab_size + 1)
        ranks, limits = place[self.wanted], (0, *edges, self.dense.vocab_size)
        pairs = zip(limits, limits[1:], strict=False)
        return {f"{low + 1}-{high}": (ranks > low) & (ranks <= high) for low, high in pairs}

    def head(self, name: str) -> Any:
        """A head of the draft by name; those that rank ids count them in the tuning texts."""
        weight, norm = self.draft.head_weight, self.draft.norm
        return ShortlistHead.build(weight, self.ranked(name), norm) if name in RANKED else head_named(name, Origin(weight, norm))


@lru_cache(maxsize=1)
def held_out(target: str, draft: str, prompts: tuple[Prompt, ...], plain: Entry, new_tokens: int) -> HeldOut:
    """Let the target write behind every prompt and the draft read it; ValueError where no kind has two prompts."""
    models, written, whole, rows, kinds = models_of(target, draft, "bfloat16", "dense"), [], [], [], tuple[str, ...]()
    for half in halves(prompts):
        told = texts(models, plain, half, new_tokens)
        read = [(*prompt.ids, *text) for prompt, text in zip(half, told, strict=True)]
        written.append(torch.tensor([token for text in told for token in text]))
        whole.append(torch.tensor([token for ids in read for token in ids]))
        rows.append(torch.cat([rows_of(models.model("draft"), ids) for ids in read]))
        kinds = tuple(prompt.kind for prompt, ids in zip(half, read, strict=True) for _ in ids)
    tuning, judging = rows
    return HeldOut(models, tuning, judging, kinds, whole[0], written[0])


def halves(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to tune on and prompts to judge by, in turns within each kind; ValueError where no kind has two."""
    found: tuple[list[Prompt], list[Prompt]] = ([], [])
    seen: dict[str, int] = {}
    for prompt in prompts:
        seen[prompt.kind] = seen.get(prompt.kind, 0) + 1
        found[1 - seen[prompt.kind] % 2].append(prompt)
    if not found[1]:
        raise ValueError("two prompts of a kind are needed, one to tune on and one to judge by; give more, or a larger per_kind")
    return found


@torch.inference_mode()
def rows_of(model: Transformer, ids: tuple[int, ...]) -> Tensor:
    """A model's rows [n, hidden] over a text, as a decode reads them, in float32."""
    reader = SpanReader(model, context=len(ids) + 1)
    reader.read(torch.tensor(ids))
    return reader.rows[: len(ids)].float().clone()


@torch.inference_mode()
def judged(head: Head, held: HeldOut) -> tuple[Tensor, Tensor]:
    """For every judging row: whether the head's best id is the dense head's [n], and the dense mass it scores [n]."""
    best, mass = [], []
    for rows, chances in zip(held.judging.split(AT_ONCE), held.chances.split(AT_ONCE), strict=True):
        scores = head(rows, torch.arange(len(rows)), Dice(0))
        best.append(scores.pick(scores.logits.argmax(1)))
        found = chances if scores.ids is None else chances.gather(1, scores.ids)
        mass.append(found.masked_fill(scores.logits == -torch.inf, 0.0).sum(1))
    return torch.cat(best) == held.wanted, torch.cat(mass)


def probes_within(head: FlashHead, share: float) -> int:
    """The most probes with which a FlashHead scores at most this share of the vocabulary, centroids included; at least 1."""
    spare = int(share * head.vocab_size) - (head.rows_scored - head.probes * head.table.slots)
    return min(head.table.clusters, max(1, spare // head.table.slots))
