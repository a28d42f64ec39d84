"""Rounding a weight matrix to few levels: the nearest ones, or (GPTQ) those that keep the layer's output on real inputs.

In: float32 (n_out, n_in), a Grid, and for GPTQ the second moments of the layer's inputs. Out: Rounded, whose values are
scales * levels. How the levels are stored for an operator is not its concern (see blocks.py and channels.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

COLUMNS = 128  # rounded before what is right of them is corrected in one product
# Of the mean moment, added to each column's own. GPTQ's authors take 0.01; 5 times that keeps 4 bits nearer on texts of
# other kinds than the calibration's.
DAMPING = {8: 0.01, 4: 0.05}


@dataclass(frozen=True)
class Grid:
    """The levels of a weight: `block` of them along n_in share a scale (0: a whole row does).

    symmetric: levels -(2^(bits-1) - 1) .. 2^(bits-1) - 1 at 8 bits, -8..7 at 4. Else 0..2^bits - 1 less a zero point.
    scale_bits: of a block's scale: 32, a float; 8, a whole multiple of a step that the row shares.
    """

    bits: int
    block: int = 0
    symmetric: bool = True
    scale_bits: int = 32

    def fitted(self, n_in: int) -> Grid:
        """The same with blocks that divide n_in, where some power of two from 16 on does."""
        return replace(self, block=fitting_block(n_in, self.block)) if self.block else self

    def spans(self, n_in: int) -> list[tuple[int, int]]:
        """The columns of each block; the last may be shorter."""
        size = self.block or n_in
        return [(start, min(start + size, n_in)) for start in range(0, n_in, size)]

    def stored_bytes(self, n_out: int, n_in: int) -> int:
        """Of a matrix: levels, scales, zero points."""
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
    """The largest block of `wanted` or a power of two below it, down to 16, that divides n_in; `wanted` if none does
    (the last block is then padded)."""
    block = wanted
    while block >= 16:
        if n_in % block == 0:
            return block
        block //= 2
    return wanted


@dataclass(frozen=True)
class Rounded:
    """levels int16 (n_out, n_in), the zero point taken off; scales float32 (n_out, blocks); zeros uint8 (n_out, blocks),
    of an asymmetric grid; scale_steps float32 (n_out, 1), of a grid whose scales are whole multiples of them."""

    levels: Tensor
    scales: Tensor
    zeros: Tensor | None
    grid: Grid
    scale_steps: Tensor | None = None

    @property
    def whole(self) -> bool:
        """Whether every block is full."""
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
    """Round column after column, and let the columns that are still to come make good each one's error on the inputs whose
    second moments x^T x are `moments` (n_in, n_in) (Frantar et al. 2022, arXiv 2210.17323).

    Rows of one scale take the columns with the most energy first, which leaves their errors the most others to go to. When
    all levels are known, the scales are fitted once more.
    """
    moments, damping = moments.double().clone(), DAMPING[grid.bits]
    silent = moments.diagonal() == 0
    moments[silent, silent] = 1.0  # no input ever: nothing to make good
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
    """Upper Cholesky factor of the inverse moments, float32: row i says how an error in column i spreads to the right."""
    mean = moments.diagonal().mean()
    while True:
        damped = moments + torch.eye(len(moments), dtype=moments.dtype) * damping * mean
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper.float()
        damping *= 10  # too few inputs for so many columns


def _round(weight: Tensor, grid: Grid, influence: Tensor | None) -> Rounded:
    n_out, n_in = weight.shape
    low, high = grid.range
    weight = weight.clone()
    levels = torch.empty(n_out, n_in, dtype=torch.int16)
    scales, zeros = [], []
    steps = _scale_steps(weight, grid) if grid.scale_bits == 8 else None
    for first, last in grid.spans(n_in):
        # what an error of a column costs when those to its right have made good what they can
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
    """The same levels, with the scales that keep the outputs on inputs of these second moments best: least squares, over
    all the scales of a row at once."""
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
    # a little of the scale that was, for blocks whose levels are all 0
    ridge = 1e-4 * products.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp_min(1e-30)
    scales = torch.linalg.solve(
        products + torch.diag_embed(ridge.expand_as(wanted)), wanted + ridge * rounded.scales
    )
    return replace(rounded, scales=_in_steps(scales, rounded.scale_steps))


def _scale_steps(weight: Tensor, grid: Grid) -> Tensor:
    """(n_out, 1): of which every block's scale is at most 127, also when the blocks before it have added their errors."""
    low, high = grid.range
    return (2.5 / (high - low) / 127) * weight.abs().amax(1, keepdim=True).clamp_min(1e-30)


def _in_steps(scales: Tensor, steps: Tensor | None) -> Tensor:
    """The nearest that int8 can say of them, and never 0; with no steps, themselves."""
    return (
        scales
        if steps is None
        else torch.copysign((scales.abs() / steps).round().clamp(1, 127) * steps, scales)
    )


def fit(
    values: Tensor, grid: Grid, weights: Tensor | None = None, scale_steps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point (n_out,) for the rows of `values` (n_out, n): of some clips, those with the least squared error,
    each column's counted `weights` (n,) times. Scales are whole multiples of `scale_steps` (n_out, 1) where there are any.

    8 bits need no clip (searching one gains nothing). A symmetric grid of few levels lets its longer side, -2^(bits-1),
    take the largest magnitude, with the sign that the scale then carries, as llama.cpp's Q4_0 does.
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
