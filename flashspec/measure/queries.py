"""Hidden rows that a draft head will be queried with: a model's own, over texts that it writes, by domain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.generate import request
from flashspec.decoding.models import Models
from flashspec.heads.base import DenseHead
from flashspec.heads.flash import FlashHead, agreement
from flashspec.measure.prompts import Prompt
from flashspec.sampling import Sampling

EVERY = 4  # of so many texts of a domain, the last is held out


class Domain(NamedTuple):
    """Rows [n, hidden] before the final norm: some to build on (none for an unseen domain), some to judge by."""

    seen: Tensor
    held: Tensor


def written(models: Models, prompt: Prompt, new_tokens: int, sampling: Sampling) -> Tensor:
    """The target's rows [n, hidden] from the prompt's last token on, while it writes."""
    ready = request(models, list(prompt.ids), "baseline", sampling, {"max_new_tokens": new_tokens})
    emitted = sum(len(step.tokens) for step in ready.steps())
    last = len(prompt.ids) - 1
    return ready.stages[0].reader.rows[last : last + emitted].clone()


def domains(models: Models, prompts: Sequence[Prompt], unseen: str, new_tokens: int, sampling: Sampling) -> dict[str, Domain]:
    """Rows for every kind of prompt, equal prompts once; the kind `unseen` is kept out of building.

    ValueError, before any work, where a kind has too few prompts, or `unseen` is no kind or the only one.
    """
    from tqdm import tqdm

    texts, once = dict[str, list[Tensor]](), {prompt.ids: prompt for prompt in prompts}.values()
    _check(Counter(prompt.kind for prompt in once), unseen)
    for prompt in tqdm(once, desc="writing", unit="text", leave=False):
        texts.setdefault(prompt.kind, []).append(written(models, prompt, new_tokens, sampling))
    found = {}
    for kind, rows in texts.items():
        seen = [each for i, each in enumerate(rows) if kind != unseen and i % EVERY != EVERY - 1]
        held = [each for i, each in enumerate(rows) if kind == unseen or i % EVERY == EVERY - 1]
        found[kind] = Domain(torch.cat(seen) if seen else rows[0][:0], torch.cat(held))
    return found


def _check(counts: Counter[str], unseen: str) -> None:
    """Refuse prompts that leave nothing to build on or to judge by."""
    if unseen not in counts or len(counts) == 1:
        raise ValueError(f"the unseen kind is one of at least two kinds of prompts, got {unseen!r} of {', '.join(counts)}")
    for kind, count in counts.items():
        if count < EVERY:
            raise ValueError(f"{EVERY} different prompts of a kind are needed, to build on and to judge by; {kind!r} has {count}")


def agreements(head: FlashHead, dense: DenseHead, found: dict[str, Domain]) -> dict[str, float]:
    """Share of held-out rows of every domain whose best id is the dense head's."""
    return {kind: agreement(head, dense, domain.held) for kind, domain in found.items()}
