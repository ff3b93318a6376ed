"""Muon for matrices (Jordan et al. 2024): momentum, orthogonalised by Newton-Schulz, one matrix of a fused weight at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, steps: int = 4) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly.

    The quintic iteration X <- (a + b A + c A^2) X with A = X X^T is run on A alone (m x m, m the short side), and the
    product of its polynomials is applied to the matrix once: the same result for a third less arithmetic.
    """
    a, b, c = COEFFICIENTS
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    short = short / (short.norm() + 1e-7)
    gram = short @ short.T
    product = None
    for step in range(steps):
        poly = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        poly.diagonal().add_(a)
        product = poly if product is None else poly @ product
        if step + 1 < steps:
            gram = poly @ gram @ poly
    result = product @ short
    return result if matrix.shape[0] <= matrix.shape[1] else result.T


class Muon(torch.optim.Optimizer):
    """Nesterov momentum and orthogonalised updates, scaled by sqrt(max(1, rows / columns)).

    A parameter may carry `row_groups`, the row counts of the matrices fused in it; each is orthogonalised alone.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["momentum"])

    def _update(self, parameter: Tensor, grad: Tensor, lr: float, momentum: float) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        moment = state["momentum"].lerp_(grad, 1 - momentum)
        ahead = grad.lerp(moment, momentum)
        rows = getattr(parameter, "row_groups", (parameter.shape[0],))
        for weight, update in zip(parameter.split(rows), ahead.split(rows), strict=True):
            scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
            weight.add_(orthogonalise(update), alpha=-lr * scale)
