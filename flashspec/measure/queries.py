"""Hidden rows that a draft head will be queried with: a model's own, over texts that it writes, by domain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flashspec.decoding.generate import requests, steps_together
from flashspec.decoding.models import Models
from flashspec.heads.base import DenseHead
from flashspec.heads.flash import FlashHead, agreement
from flashspec.measure.prompts import Prompt
from flashspec.sampling import Sampling

TOGETHER = 8  # texts that are written at once
EVERY = 4  # of so many texts of a domain, the last is held out


class Domain(NamedTuple):
    """Rows [n, hidden] before the final norm: some to build on (none for an unseen domain), some to judge by."""

    seen: Tensor
    held: Tensor


def written(models: Models, prompts: Sequence[Prompt], new_tokens: int, sampling: Sampling) -> list[Tensor]:
    """The target's rows [n, hidden] from each prompt's last token on, while it writes all texts together."""
    ids, options = [list(prompt.ids) for prompt in prompts], {"max_new_tokens": new_tokens}
    ready = requests(models, ids, "baseline", sampling, options)
    emitted = [0] * len(ready)
    for number, step in steps_together(ready):
        emitted[number] += len(step.tokens)
    places = ((len(each.ids) - 1, each.stages[0].reader.rows) for each in ready)
    return [rows[last : last + count].clone() for (last, rows), count in zip(places, emitted, strict=True)]


def domains(models: Models, prompts: Sequence[Prompt], unseen: str, new_tokens: int, sampling: Sampling) -> dict[str, Domain]:
    """Rows for every kind of prompt, equal prompts once; the kind `unseen` is kept out of building.

    ValueError, before any work, where a kind has too few prompts, or `unseen` is no kind or the only one.
    """
    from tqdm import tqdm

    texts, once = dict[str, list[Tensor]](), [*{prompt.ids: prompt for prompt in prompts}.values()]
    _check(Counter(prompt.kind for prompt in once), unseen)
    with tqdm(total=len(once), desc="writing", unit="text", leave=False) as bar:
        for start in range(0, len(once), TOGETHER):
            some = once[start : start + TOGETHER]
            for prompt, own in zip(some, written(models, some, new_tokens, sampling), strict=True):
                texts.setdefault(prompt.kind, []).append(own)
            bar.update(len(some))
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
