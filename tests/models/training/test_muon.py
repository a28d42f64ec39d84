"""gptx's Muon is torch.optim.Muon, whose products are in bf16 alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from gptx_models.training.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_in_bf16_it_is_torchs_to_the_bit(shape: tuple[int, int]):
    random = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=random)
    ours, torchs = Parameter(start.clone()), Parameter(start.clone())
    one = Muon([ours], lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    other = torch.optim.Muon(
        [torchs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=random)
        torchs.grad = ours.grad.clone()
        one.step()
        other.step()
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_orthogonalized_it_keeps_singular_vectors(shape: tuple[int, int], dtype: torch.dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalize(matrix, dtype).float() @ v.T  # diagonal, but for rounding
    diagonal = inner.diagonal()
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3
    assert (inner - torch.diag(diagonal)).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)
