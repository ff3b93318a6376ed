"""A fixed list of ids and no other: FR-Spec (arXiv 2502.14856) and VocabTrim (arXiv 2506.22694).

Both score the frozen weight's rows of the ids that came out most often, and differ in where they counted: in a corpus, or in
what the target itself wrote.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flashspec.heads.base import Norm, WeightHead, fused, project, weight_of
from flashspec.heads.storage import identity, read, refuse_another, stored, write
from flashspec.kernels.pages import Shelf
from flashspec.model.files import typed
from flashspec.scores import Dice, Scores

KEY = "shortlist_head"


def ranked_by_frequency(tokens: Tensor, vocab_size: int) -> Tensor:
    """Ids [V], the most frequent in `tokens` first; ties and ids that never occur go by their number.

    FR-Spec counts a corpus, VocabTrim the target's own output. ValueError where there are no tokens or one is no id.
    """
    if not tokens.numel():
        raise ValueError("there are no tokens to rank ids by; give the ids of a text")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size:
        raise ValueError(f"token ids run from 0 to {vocab_size - 1}, got {int(tokens.min())}..{int(tokens.max())}")
    counts = torch.bincount(tokens.flatten(), minlength=vocab_size)
    return counts.argsort(descending=True, stable=True)


@dataclass(frozen=True)
class ShortlistHead(WeightHead):
    """Exact logits of the first `size` of the `ranked` ids; the others have probability zero and are left to the verifier.

    `ids` [size] rise, and `rows` [size, hidden] is a contiguous copy of their rows.
    """

    norm: Norm
    weight: Tensor
    ranked: Tensor
    size: int
    ids: Tensor
    rows: Tensor

    @classmethod
    def build(cls, weight: Tensor, ranked: Tensor, norm: Norm | None = None, size: int | None = None) -> ShortlistHead:
        """Keep `size` (a quarter of the vocabulary, if not given) of the ids `ranked` [m], best first.

        Raises ValueError where ids repeat or do not exist, or there are fewer than `size`.
        """
        weight = weight_of(weight)
        ranked = ranked.long()
        size = -(-len(weight) // 4) if size is None else size
        _refuse(ranked, size, len(weight))
        ids = ranked[:size].sort().values.to(weight.device)
        return cls(fused(norm), weight, ranked, size, ids, Shelf().moved(weight[ids]))

    @property
    def rows_scored(self) -> int:
        """Inner products for each hidden row."""
        return self.size

    @torch.no_grad()
    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Scores [n, size] of rows [n, hidden]."""
        return Scores(self.ids.expand(len(rows), -1), project(self.states(rows), self.rows))

    def bytes_read(self, rows: int) -> int:
        """The listed rows, once, however many hidden rows share the reading."""
        return self.rows.nbytes

    def with_shortlist(self, size: int) -> ShortlistHead:
        """This head with another number of ids."""
        return ShortlistHead.build(self.weight, self.ranked, self.norm, size)

    def save(self, path: Path | str) -> None:
        """Write the ranking (not the weight) to a safetensors file."""
        write(Path(path), KEY, {"ranked": self.ranked.int()}, {**identity(self.weight), "size": self.size})

    @classmethod
    def load(cls, path: Path | str, weight: Tensor, norm: Norm | None = None) -> ShortlistHead:
        """Read what `save` wrote for this weight; ValueError where it is another one."""
        tensors, facts = read(Path(path), KEY)
        refuse_another(Path(path), facts, weight)
        return cls.build(weight, stored(tensors, "ranked", 1, Path(path)), norm, typed(facts.get("size"), int, Path(path)))


def _refuse(ranked: Tensor, size: int, vocab: int) -> None:
    if ranked.numel() and (int(ranked.min()) < 0 or int(ranked.max()) >= vocab):
        raise ValueError(f"a ranking lists ids from 0 to {vocab - 1}, got {int(ranked.min())}..{int(ranked.max())}")
    if len(ranked.unique()) < len(ranked):
        raise ValueError("a ranking lists every id once, and this one repeats some; rank ids, not tokens")
    if not 1 <= size <= len(ranked):
        raise ValueError(f"a shortlist holds 1 to {len(ranked)} of the ranked ids, got size {size}")
