"""Muon (Jordan et al. 2024) as torch.optim.Muon has it, in bf16 or fp32.

torch.optim.Muon orthogonalizes in bf16 alone, which takes seconds a step on a CPU without bf16
instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

# Jordan's coefficients of the quintic iteration, and its number of steps, as in torch.optim.Muon.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
_EPSILON = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum with Nesterov's look-ahead, orthogonalized, for matrices.

    dtype: of the products that orthogonalize; weights and momentum keep their own.

    An update is scaled to the size of AdamW's (Liu et al. 2025, section 2.2), so one learning rate
    serves both optimizers.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        *,
        weight_decay: float,
        dtype: torch.dtype,
        lr: float = 1e-3,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        assert closure is None, "the loss is computed before the step"
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(weight.grad, 1 - momentum)
                update = orthogonalize(weight.grad.lerp(buffer, momentum), self.dtype)
                weight.mul_(1 - rate * group["weight_decay"])
                weight.add_(update, alpha=-rate * 0.2 * max(weight.shape) ** 0.5)


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix with the singular vectors of `matrix` and singular values of about 0.7 to 1.2.

    matrix: (N, K). It is found by a Newton-Schulz iteration (Jordan et al. 2024).
    """
    wide = matrix.to(dtype)
    tall = matrix.shape[0] > matrix.shape[1]
    if tall:
        wide = wide.T
    wide = wide / wide.norm().clamp(min=_EPSILON)
    for _ in range(_STEPS):
        gram = wide @ wide.T
        polynomial = torch.addmm(gram, gram, gram, beta=_B, alpha=_C)
        wide = torch.addmm(wide, polynomial, wide, beta=_A)
    return wide.T if tall else wide
