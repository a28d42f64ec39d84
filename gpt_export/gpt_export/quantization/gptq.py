"""Round a weight matrix to few levels: to the nearest ones, or by GPTQ.

GPTQ keeps the layer's output on real inputs. In: float32 (n_out, n_in), a Grid, and for GPTQ the
second moments of the layer's inputs. Out: Rounded, whose values are scales * levels. The layout
that an operator reads is made in blocks.py and channels.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

COLUMNS = 128  # columns that are rounded before one product corrects all columns after them
# By bits: share of the mean second moment that is added to each column's moment. GPTQ's authors
# take 0.01. For 4 bits, 0.05 loses less on texts of other kinds than the calibration text.
DAMPING = {8: 0.01, 4: 0.05}


@dataclass(frozen=True)
class Grid:
    """The levels that weights are rounded to.

    block: number of weights along n_in that share a scale; 0: a whole row. symmetric: levels are
    -127..127 for 8 bits, -8..7 for 4. Otherwise 0..2^bits - 1, minus a zero point. scale_bits: 32:
    scales are floats; 8: whole multiples of a step per row.
    """

    bits: int
    block: int = 0
    symmetric: bool = True
    scale_bits: int = 32

    def fitted(self, n_in: int) -> Grid:
        """The same grid with a block that divides n_in, if there is one (see fitting_block)."""
        return replace(self, block=fitting_block(n_in, self.block)) if self.block else self

    def spans(self, n_in: int) -> list[tuple[int, int]]:
        """First column and end of each block; the last block may be shorter."""
        size = self.block or n_in
        return [(start, min(start + size, n_in)) for start in range(0, n_in, size)]

    def stored_bytes(self, n_out: int, n_in: int) -> int:
        """Bytes that a matrix takes: levels, scales, zero points."""
        blocks = len(self.spans(n_in))
        levels = blocks * (self.block or n_in) * self.bits // 8
        scales = 4 * blocks if self.scale_bits == 32 else blocks + 4
        return n_out * (levels + scales + (0 if self.symmetric else -(-blocks * self.bits // 8)))

    @property
    def range(self) -> tuple[int, int]:
        if not self.symmetric:
            return 0, (1 << self.bits) - 1
        half = 1 << (self.bits - 1)
        return (-half if self.bits < 8 else 1 - half), half - 1


def fitting_block(n_in: int, wanted: int) -> int:
    """The largest block that divides n_in: `wanted`, or a half, a quarter ... of it, at least 16.

    `wanted` if none divides n_in; the last block is then padded.
    """
    block = wanted
    while block >= 16:
        if n_in % block == 0:
            return block
        block //= 2
    return wanted


@dataclass(frozen=True)
class Rounded:
    """A matrix (n_out, n_in) rounded to a grid.

    levels: int16 (n_out, n_in), minus the zero point. scales: float32 (n_out, blocks). zeros: uint8
    (n_out, blocks) if the grid is asymmetric. scale_steps: float32 (n_out, 1) if the scales have 8
    bits.
    """

    levels: Tensor
    scales: Tensor
    zeros: Tensor | None
    grid: Grid
    scale_steps: Tensor | None = None

    @property
    def whole(self) -> bool:
        """True if no block is padded."""
        return not self.grid.block or self.levels.shape[1] % self.grid.block == 0

    def values(self) -> Tensor:
        """The float32 matrix that it stands for."""
        n_in = self.levels.shape[1]
        widths = torch.tensor([end - start for start, end in self.grid.spans(n_in)])
        return self.levels * self.scales.repeat_interleave(widths, dim=1)


def stacked(parts: list[Rounded]) -> Rounded:
    """One matrix of the rows of several, which were rounded to one grid."""

    def joined(name: str) -> Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else torch.cat(tensors)

    levels, scales = joined("levels"), joined("scales")
    assert levels is not None and scales is not None
    return Rounded(levels, scales, joined("zeros"), parts[0].grid, joined("scale_steps"))


@torch.no_grad()
def round_nearest(weight: Tensor, grid: Grid) -> Rounded:
    return _round(weight.float(), grid, None)


@torch.no_grad()
def round_gptq(weight: Tensor, moments: Tensor, grid: Grid) -> Rounded:
    """Round by GPTQ (Frantar et al. 2022, arXiv 2210.17323).

    moments: second moments x^T x of the layer's inputs (n_in, n_in). Columns are rounded one by
    one; the columns after a column are changed to compensate its error on these inputs. With one
    scale per row, columns with the most energy come first, so that most columns are left to
    compensate their errors. Finally the scales are refitted to the levels.
    """
    moments, damping = moments.double().clone(), DAMPING[grid.bits]
    silent = moments.diagonal() == 0
    moments[silent, silent] = 1.0  # an input that is always 0; 1 keeps the matrix invertible
    if grid.block:
        return refit(
            weight.float(),
            _round(weight.float(), grid, _influence(moments, damping)),
            moments,
            damping,
        )
    order = moments.diagonal().argsort(descending=True)
    done = _round(weight.float()[:, order], grid, _influence(moments[order][:, order], damping))
    in_place = Rounded(done.levels[:, order.argsort()].contiguous(), done.scales, done.zeros, grid)
    return refit(weight.float(), in_place, moments, damping)


def _influence(moments: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse moments, float32 (n_in, n_in).

    Row i tells how an error in column i is spread over the columns after it.
    """
    mean = moments.diagonal().mean()
    while True:
        damped = moments + torch.eye(len(moments), dtype=moments.dtype) * damping * mean
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper.float()
        damping *= 10  # the moments are singular: too few inputs for so many columns


def _round(weight: Tensor, grid: Grid, influence: Tensor | None) -> Rounded:
    n_out, n_in = weight.shape
    low, high = grid.range
    weight = weight.clone()
    levels = torch.empty(n_out, n_in, dtype=torch.int16)
    scales, zeros = [], []
    steps = _scale_steps(weight, grid) if grid.scale_bits == 8 else None
    for first, last in grid.spans(n_in):
        # the cost of a column's error after the columns to its right have compensated what they can
        weights = None if influence is None else influence.diagonal()[first:last] ** -2
        scale, zero = fit(weight[:, first:last], grid, weights, steps)
        scales.append(scale)
        zeros.append(zero)
        if influence is None:
            q = (weight[:, first:last] / scale[:, None] + zero[:, None]).round().clamp(low, high)
            levels[:, first:last] = (q - zero[:, None]).short()
            continue
        for start in range(first, last, COLUMNS):
            end = min(start + COLUMNS, last)
            # rows of the transposed piece are columns of the weight, contiguous here
            piece = weight[:, start:end].T.contiguous()
            errors = torch.empty_like(piece)
            for column in range(end - start):
                at = start + column
                level = (piece[column] / scale + zero).round().clamp(low, high) - zero
                levels[:, at] = level.short()
                errors[column] = (piece[column] - level * scale) / influence[at, at]
                piece[column + 1 :] -= influence[at, at + 1 : end, None] * errors[column]
            weight[:, end:] -= errors.T @ influence[start:end, end:]
    stacked = torch.stack(zeros, 1).to(torch.uint8) if not grid.symmetric else None
    return Rounded(levels, torch.stack(scales, 1), stacked, grid, steps)


def refit(weight: Tensor, rounded: Rounded, moments: Tensor, damping: float) -> Rounded:
    """Refit the scales, with the same levels: least squares of the layer's outputs, per row.

    moments: second moments of the layer's inputs (n_in, n_in).
    """
    if not rounded.whole:
        return rounded
    n_out, n_in = weight.shape
    size = rounded.grid.block or n_in
    moments = (
        moments + torch.eye(n_in, dtype=moments.dtype) * damping * moments.diagonal().mean()
    ).float()
    levels = rounded.levels.float()
    wanted = (weight @ moments * levels).unflatten(1, (-1, size)).sum(-1)  # (n_out, blocks)
    products = torch.empty(n_out, n_in // size, n_in // size)
    for index, (first, last) in enumerate(rounded.grid.spans(n_in)):
        reach = levels[:, first:last] @ moments[first:last]
        products[:, index] = (reach * levels).unflatten(1, (-1, size)).sum(-1)
    # a small pull towards the old scales makes the system solvable if all levels of a block are 0
    ridge = 1e-4 * products.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp_min(1e-30)
    scales = torch.linalg.solve(
        products + torch.diag_embed(ridge.expand_as(wanted)), wanted + ridge * rounded.scales
    )
    return replace(rounded, scales=_in_steps(scales, rounded.scale_steps))


def _scale_steps(weight: Tensor, grid: Grid) -> Tensor:
    """Steps of 8-bit scales, (n_out, 1).

    2.5 leaves room for weights that grow by the errors of earlier columns: no scale exceeds 127
    steps.
    """
    low, high = grid.range
    return (2.5 / (high - low) / 127) * weight.abs().amax(1, keepdim=True).clamp_min(1e-30)


def _in_steps(scales: Tensor, steps: Tensor | None) -> Tensor:
    """Round scales to multiples (1..127) of `steps`, keeping signs. Without steps: unchanged."""
    return (
        scales
        if steps is None
        else torch.copysign((scales.abs() / steps).round().clamp(1, 127) * steps, scales)
    )


def fit(
    values: Tensor, grid: Grid, weights: Tensor | None = None, scale_steps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each (n_out,), for the rows of `values` (n_out, n).

    Several clipping ranges are tried; the one with the least squared error is taken. weights (n,):
    the weight of each column's error. scale_steps (n_out, 1): scales are whole multiples of these.

    8-bit symmetric grids are not clipped, which would gain nothing. In a 4-bit symmetric grid, the
    largest magnitude gets the level -8, the longer side, and the scale has its sign, as in
    llama.cpp's Q4_0.
    """
    low, high = grid.range
    if grid.bits == 8 and grid.symmetric:
        scale = values.abs().amax(1) / high
        return torch.where(scale > 0, scale, 1.0), torch.zeros(len(values))
    if grid.symmetric:
        extreme = values.gather(1, values.abs().argmax(1, keepdim=True)).squeeze(1)
        widest, zero = extreme / low, torch.zeros(len(values))
        shifts = [zero]
    else:
        least, most = values.amin(1).clamp(max=0.0), values.amax(1).clamp(min=0.0)
        widest = (most - least) / high
        zero = torch.where(widest > 0, -least / widest, 0.0)
        shifts = [
            zero.floor(),
            zero.ceil().clamp(max=high),
        ]  # -least / widest can be a bit more than `high`
    widest = torch.where(widest != 0, widest, 1.0)
    counted = torch.ones(values.shape[1]) if weights is None else weights
    best = torch.full((len(values),), torch.inf)
    scale, zero = widest, shifts[0]
    for clip in torch.linspace(1.0, 0.7, 16).tolist() if grid.bits < 8 else [1.0]:
        tried = _in_steps(clip * widest[:, None], scale_steps)
        for shift in shifts:
            q = (values / tried + shift[:, None]).round().clamp(low, high) - shift[:, None]
            error = (q * tried - values).square() @ counted
            better = error < best
            best = torch.where(better, error, best)
            scale = torch.where(better, tried[:, 0], scale)
            zero = torch.where(better, shift, zero)
    return scale, zero
