"""A vocabulary taken from the context: ids of the prompt, of the text so far and of the verifier's best guesses.

After NanoSpec (arXiv 2605.26444): no training, and a buffer of fixed size, so that shapes and addresses never change.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flashspec.heads.base import Norm, WeightHead, project, weight_of
from flashspec.kernels.pages import Shelf
from flashspec.scores import Dice, Scores

SIZE, TOP = 2048, 16


@dataclass(eq=False)
class ContextHead(WeightHead):
    """Exact logits of the `size` ids seen last; the others have probability zero and are left to the verifier.

    `learn` changes the list between rounds and nothing else does, so within a round the head is row-wise like any other. The
    drafts are then a function of the rounds before, not of the row alone. What is verified is not touched by that: the list
    is settled before a token is drawn, so every exact rule keeps its law, and under Gumbel coupling the text stays the
    baseline's; only how many drafts are accepted may depend on the rounds. Until enough ids were seen, the list is filled
    with the smallest ids, in a BPE vocabulary the most frequent ones.
    """

    norm: Norm | None
    weight: Tensor
    size: int = SIZE
    top: int = TOP
    ids: Tensor = field(init=False, repr=False)
    rows: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.weight = weight_of(self.weight)
        if self.size < 1 or self.top < 0:
            raise ValueError(f"size must be at least 1 and top at least 0, got {self.size} and {self.top}")
        self.size = min(self.size, self.vocab_size)
        device = self.weight.device
        self._unseen = -torch.arange(1, self.vocab_size + 1, device=device)
        self._seen, self._clock = self._unseen.clone(), 0
        self.ids = torch.zeros(self.size, dtype=torch.int64, device=device)
        self.rows = Shelf().zeros((self.size, self.hidden), self.weight.dtype, device)
        self._gather()

    @property
    def rows_scored(self) -> int:
        """Inner products for each hidden row."""
        return self.size

    @torch.no_grad()
    def __call__(self, rows: Tensor, positions: Tensor | None = None, dice: Dice | None = None) -> Scores:
        """Scores [n, size] of rows [n, hidden]."""
        return Scores(self.ids.expand(len(rows), -1).clone(), project(self.states(rows), self.rows))

    def bytes_read(self, rows: int) -> int:
        """The listed rows, once; the buffer is filled anew once a round, which costs as much again and is not counted here."""
        return self.rows.nbytes

    @torch.inference_mode()
    def learn(self, tokens: Tensor, scores: Scores | None) -> None:
        """Take in tokens [n] that became final and the verifier's scores behind them; no host synchronisation.

        `scores` None says that a new text begins with these tokens: what was seen before is forgotten.
        """
        if scores is None:
            self._seen.copy_(self._unseen)
            self._clock = 0
        fresh = tokens if scores is None or not self.top else torch.cat((_best(scores, self.top), tokens))
        stamps = torch.arange(1, len(fresh) + 1, device=fresh.device) + self._clock
        self._seen.scatter_reduce_(0, fresh, stamps, "amax")
        self._clock += len(fresh)
        self._gather()

    def _gather(self) -> None:
        """Copy the rows of the ids seen last into the buffer, ids rising."""
        self.ids.copy_(self._seen.topk(self.size).indices.sort().values)
        torch.index_select(self.weight, 0, self.ids, out=self.rows)

    def with_shortlist(self, size: int) -> ContextHead:
        """A fresh head with another number of ids."""
        return replace(self, size=size)


def _best(scores: Scores, top: int) -> Tensor:
    """The best ids of every row, the best of all rows last."""
    columns = scores.logits.topk(min(top, scores.logits.shape[1])).indices
    ids = columns if scores.ids is None else scores.ids.gather(1, columns)
    return ids.T.flip(0).flatten()
