"""Rounding of a matrix, against exhaustive searches and eliminations in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpt_export.quantization.blocks import dequantize_blocks, pack_blocks
from gpt_export.quantization.gptq import Grid, Rounded, round_gptq, round_nearest

BLOCKS = [Grid(4, 16), Grid(4, 32), Grid(4, 16, symmetric=False), Grid(4, 32, symmetric=False)]
SHORT_SCALES = [Grid(4, 32, scale_bits=8), Grid(4, 16, symmetric=False, scale_bits=8)]


def weights(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def best_error(block: np.ndarray, energy: np.ndarray, grid: Grid) -> float:
    """The least error of a block over clips of 70 to 100% and both zero points."""
    low, high = (-8, 7) if grid.symmetric else (0, 15)
    if grid.symmetric:
        tried = [(block[np.abs(block).argmax()] / low, 0)]
    else:
        least, most = min(block.min(), 0), max(block.max(), 0)
        step = (most - least) / high
        tried = [(step, np.floor(-least / step)), (step, np.ceil(-least / step))]
    errors = []
    for step, zero in tried:
        for clip in np.linspace(0.7, 1, 31):
            levels = np.clip(np.round(block / (clip * step) + zero), low, high) - zero
            errors.append((energy * (levels * clip * step - block) ** 2).sum())
    return min(errors)


def error_of(rounded: Rounded, weight: torch.Tensor, energy: np.ndarray) -> float:
    return float(((rounded.values() - weight).double().numpy() ** 2 * energy).sum())


@pytest.mark.parametrize("grid", [*BLOCKS, *SHORT_SCALES])
@pytest.mark.parametrize("spread", [1, 30])
def test_no_clip_and_no_zero_point_is_better(grid: Grid, spread: int) -> None:
    """With uncorrelated inputs, GPTQ takes the nearest levels: there is no error to pass on.

    The scale is the one that costs least where inputs are large.
    """
    weight = weights(40, 64)
    energy = np.where(np.arange(64) % 3 == 0, spread, 1.0) ** 2
    found = round_gptq(weight, torch.from_numpy(np.diag(energy)), grid)
    blocks = weight.double().numpy().reshape(40, -1, grid.block)
    energies = energy.reshape(-1, grid.block)
    best = sum(
        best_error(row[n], energies[n], grid) for row in blocks for n in range(len(energies))
    )
    allowed = 1.01 if grid.scale_bits == 32 else 1.03
    assert error_of(found, weight, energy) < allowed * best
    if spread == 1:
        assert error_of(round_nearest(weight, grid), weight, energy) < allowed * best


@pytest.mark.parametrize("block", [16, 32])
def test_weights_that_lie_on_a_grid_are_kept(block: int) -> None:
    """For any zero point, and however its quotient is rounded."""
    random = np.random.default_rng(3)
    levels = random.integers(0, 16, (600, block))
    levels[:, 0], levels[:, 1] = 0, 15
    zeros = random.integers(0, 16, (600, 1))
    scales = random.random((600, 1)).astype(np.float32) + np.float32(0.01)
    weight = torch.from_numpy(((levels - zeros) * scales).astype(np.float32))
    found = round_nearest(weight, Grid(4, block, symmetric=False))
    assert (found.values() - weight).abs().max() < 1e-5
    assert found.zeros is not None and np.array_equal(found.zeros.numpy(), zeros)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("grid", [grid for grid in (*BLOCKS, *SHORT_SCALES) if not grid.symmetric])
def test_blocks_on_one_side_of_zero(sign: int, grid: Grid) -> None:
    """Their zero point is the first or the last level."""
    weight = sign * (weights(30, 64).abs() + 0.5)
    found = round_nearest(weight, grid)
    assert found.zeros is not None and (found.zeros == (0 if sign > 0 else 15)).all()
    widest = weight.abs().unflatten(1, (-1, grid.block)).amax(2).repeat_interleave(grid.block, 1)
    assert ((found.values() - weight).abs() < 0.32 * widest).all()
    assert np.array_equal(dequantize_blocks(pack_blocks(found)), found.values().numpy())


@pytest.mark.parametrize("grid", SHORT_SCALES)
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_small_block_beside_a_large_one(grid: Grid, rounding: str) -> None:
    """Its scale is the smallest one, not 0, even if all its levels are 0."""
    weight = weights(20, 96)
    weight[:, 32:64] *= 2e-3
    weight[:, 64:] = 0
    found = (
        round_nearest(weight, grid)
        if rounding == "nearest"
        else round_gptq(weight, torch.eye(96), grid)
    )
    assert (found.scales != 0).all() and (found.values()[:, 64:] == 0).all()
    packed = pack_blocks(found)
    assert packed.scales.dtype == np.int8 and np.array_equal(
        dequantize_blocks(packed), found.values().numpy()
    )
    off = (found.values() - weight)[:, 32:64].square().sum()
    assert off < 0.9 * weight[:, 32:64].square().sum()


@pytest.mark.parametrize("grid", [*BLOCKS, *SHORT_SCALES, Grid(8), Grid(8, 16)])
def test_a_layer_that_never_gets_an_input(grid: Grid) -> None:
    weight = weights(12, 64)
    found = round_gptq(weight, torch.zeros(64, 64), grid)
    assert (found.values() - weight).square().sum() < 1.01 * (
        round_nearest(weight, grid).values() - weight
    ).square().sum()


@pytest.mark.parametrize("grid", [Grid(8), Grid(8, 16), Grid(8, 64)])
def test_levels_are_those_of_gptq(grid: Grid) -> None:
    """Levels equal the definition of GPTQ (Frantar et al. 2022, equations 2 and 3).

    After a column is rounded, the remaining columns take the least squares answer to its error. The
    150 columns are more than one product corrects.
    """
    inputs = weights(500, 150, 2) @ weights(150, 150, 3)
    moments = (inputs.T @ inputs).double()
    weight = weights(12, 150)
    found = round_gptq(weight, moments, grid)

    order = (
        np.arange(150) if grid.block else np.argsort(-moments.numpy().diagonal())
    )  # the most energy first
    damped = (moments.numpy() + 0.01 * moments.diagonal().mean().item() * np.eye(150))[
        np.ix_(order, order)
    ]
    left, levels = weight.double().numpy()[:, order], np.empty((12, 150))
    scale = np.zeros(12)
    for column in range(150):
        if column % (grid.block or 150) == 0:
            scale = np.abs(left[:, column : column + (grid.block or 150)]).max(1) / 127
        levels[:, column] = np.clip(np.round(left[:, column] / scale), -127, 127)
        error = left[:, column] - levels[:, column] * scale
        rest = slice(column + 1, None)
        left[:, rest] += np.outer(error, np.linalg.solve(damped[rest, rest], damped[rest, column]))
    assert (found.levels.numpy()[:, order] == levels).mean() > 0.99
    assert found.levels.abs().max() <= 127  # the grid is symmetric, without -128


@pytest.mark.parametrize("grid", [*BLOCKS, Grid(8), Grid(8, 64)])
def test_no_other_scales_keep_the_outputs_better(grid: Grid) -> None:
    inputs = (weights(500, 64, 2) @ weights(64, 64, 3)).double()
    moments = inputs.T @ inputs
    weight = weights(12, 64)
    found = round_gptq(weight, moments, grid)
    damping = (0.01 if grid.bits == 8 else 0.05) * moments.diagonal().mean()
    # root^T root is the cost of an error
    root = np.linalg.cholesky((moments + damping * torch.eye(64)).numpy()).T
    for levels, row, scales in zip(
        found.levels.double().numpy(), weight.double().numpy(), found.scales.numpy()
    ):
        blocks = levels.reshape(len(scales), -1)
        columns = np.stack(
            [
                root[:, n * blocks.shape[1] :][:, : blocks.shape[1]] @ b
                for n, b in enumerate(blocks)
            ],
            1,
        )
        best, *_ = np.linalg.lstsq(columns, root @ row)
        np.testing.assert_allclose(scales, best, rtol=2e-3)
