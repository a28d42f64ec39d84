"""The recipe `keep`: a GGUF file's own blocks as weights of native operators, rounded no further.

In: the module of an fp32 artifact, and the blocks that gptx import wrote beside the checkpoint. The
blocks' values must be those of the module, each of them. Out: weights by module name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from gpt_export.graph.layers import Quantized
from gpt_export.graph.native_layers import Native
from gpt_export.quantization.activation_cost import cost_by_kind
from gpt_export.quantization.blocks import BlockWeights, StackedWeights
from gpt_export.quantization.gguf_forms import from_gguf
from gpt_export.quantization.native_blocks import (
    NativeBlocks,
    NativeFloats,
    NativeRows,
    dequantize_native,
)
from gpt_export.quantization.recipes import most_worth
from gptx.errors import CheckpointError, UsageError
from gptx_models.checkpoints.gguf_blocks import BLOCKS, FLOAT_TYPES, GgufRows, read_blocks
from gptx_models.gpt.model import GPT

KEEP = "keep"  # the recipe's name
ACTIVATION_KL = 0.0005  # mean KL, in nats, that activations of 8 bits may cost in total
ROWS = 4096  # rows of a matrix that are compared at a time


def keep_weights(gpt: GPT, checkpoint: Path, artifact: Path) -> dict[str, Native]:
    """The weights of all linears and of the token embedding, in the blocks of `checkpoint`.

    gpt: the module of `artifact`. Matrices without blocks stay in 32 bits, or in 16 if that changes
    no value. A tied embedding is the same object as the head. All activations have 16 bits.

    Raises CheckpointError if the checkpoint has no blocks or damaged ones, UsageError if their
    values differ from the artifact's or a type has no form.
    """
    blocks = read_blocks(checkpoint)
    found: dict[str, Native] = {}
    for name, weight in _matrices(gpt):
        parts = blocks.get(f"{name}.weight") or [GgufRows("F32", len(weight), None)]
        if sum(part.rows for part in parts) != len(weight):
            raise _stale(name, checkpoint, artifact)
        made, first = [], 0
        for part in parts:
            rows = weight[first : first + part.rows]
            made.append(_part(name, part, rows, checkpoint, artifact))
            first += part.rows
        found[name] = _joined(made)
    if gpt.config.head_is_embedding:
        found["head"] = found["wte"]
    return found


def _matrices(gpt: GPT) -> Iterator[tuple[str, np.ndarray]]:
    """Name and weight (n_out, n_in) of each linear, and of the token embedding."""
    yield "wte", gpt.wte.weight.detach().numpy()
    for name, layer in gpt.named_modules():
        if isinstance(layer, nn.Linear) and not (name == "head" and gpt.config.head_is_embedding):
            yield name, layer.weight.detach().numpy()


def _part(
    name: str, part: GgufRows, values: np.ndarray, checkpoint: Path, artifact: Path
) -> NativeBlocks | NativeFloats:
    """Rows of one tensor of the GGUF file; their values must be `values`, to the bit."""
    if part.type in FLOAT_TYPES:
        return _floats(values)
    if part.data is None:
        raise UsageError(
            f"{checkpoint / BLOCKS}: {name} is of type {part.type}, and native operators have no"
            " blocks of that type: quantize with --to int4 or --to int8"
        )
    try:
        made = from_gguf(part.type, part.data)
    except ValueError as error:
        raise CheckpointError(
            f"{checkpoint / BLOCKS} is damaged ({name}: {error}): import the GGUF file again"
        ) from error
    if made.shape != values.shape or not _has_values(made, values):
        raise _stale(name, checkpoint, artifact)
    return made


def _stale(name: str, checkpoint: Path, artifact: Path) -> UsageError:
    return UsageError(
        f"the blocks of {name} in {checkpoint / BLOCKS} have other values than the weights of"
        f" {artifact}: the checkpoint was changed after its import, or the artifact was exported"
        " from another one: import the GGUF file again and export that, or use --to int4, which"
        " rounds the new weights"
    )


def _has_values(made: NativeBlocks, values: np.ndarray) -> bool:
    """True if all weights are equal in float32."""
    places = [(first, first + ROWS) for first in range(0, len(values), ROWS)]
    return all(
        np.array_equal(dequantize_native(made.rows(first, last)), values[first:last])
        for first, last in places
    )


def _floats(values: np.ndarray) -> NativeFloats:
    """float16 if it holds each value exactly, else float32."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    return NativeFloats(halves if np.array_equal(halves.astype(np.float32), values) else values)


def _joined(parts: Sequence[NativeBlocks | NativeFloats]) -> Native:
    """One matrix of parts, in which neighbours of one form are one part.

    So gate and up are two parts or one.
    """

    def add(joined: tuple[Any, ...], part: NativeBlocks | NativeFloats) -> tuple[Any, ...]:
        last = joined[-1]
        if isinstance(last, NativeBlocks) and isinstance(part, NativeBlocks) and last.alike(part):
            return (*joined[:-1], last.above(part))
        return (*joined, part)

    made = reduce(add, parts[1:], (parts[0],))
    return made[0] if len(made) == 1 else NativeRows(made)


def choose_activations(
    gpt: GPT, weights: Mapping[str, Native], window: list[int]
) -> tuple[dict[str, Native], dict[str, float]]:
    """Give activations 8 bits in the kinds of layers where that costs little.

    window: token ids to measure on. Returns the weights, and the mean KL that 8 bits cost in all
    layers of a kind (attn.qkv, attn.out, mlp.up, mlp.down). The head keeps 16 bits.
    """
    blocks: dict[str, int] = {}
    work: dict[str, int] = {}
    for name, weight in weights.items():
        if name.startswith("blocks."):
            kind = _kind(name)
            blocks[kind] = max(blocks.get(kind, 0), *(part.block for part in _blocks(weight)), 0)
            work[kind] = work.get(kind, 0) + weight.shape[0] * weight.shape[1]
    costs = cost_by_kind(gpt, window, {kind: block for kind, block in blocks.items() if block})
    exact = most_worth(costs, work, ACTIVATION_KL)
    chosen = {
        name: _rounded(weight) if _kind(name) in costs and _kind(name) not in exact else weight
        for name, weight in weights.items()
    }
    return chosen, costs


def _kind(name: str) -> str:
    """The kind of a layer: blocks.3.mlp.up is an mlp.up. Other names stay as they are."""
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


def _blocks(weight: Native) -> list[NativeBlocks]:
    """The parts of a weight that are in blocks."""
    parts = weight.parts if isinstance(weight, NativeRows) else (weight,)
    return [part for part in parts if isinstance(part, NativeBlocks)]


def _rounded(weight: Native) -> Native:
    match weight:
        case NativeBlocks():
            return weight.rounded()
        case NativeRows(parts):
            made = (part.rounded() if isinstance(part, NativeBlocks) else part for part in parts)
            return NativeRows(tuple(made))
        case _:
            return weight


def portable_weights(weights: Mapping[str, Native]) -> dict[str, Quantized] | None:
    """The same weights for model.onnx, whose operators have Q4_0 and Q8_0; None if others occur."""
    made: dict[int, Quantized | None] = {}
    for weight in weights.values():
        if id(weight) not in made:
            made[id(weight)] = _portable(weight)
    found = {name: made[id(weight)] for name, weight in weights.items()}
    whole = {name: weight for name, weight in found.items() if weight is not None}
    return whole if len(whole) == len(found) else None


def _portable(weight: Native) -> Quantized | None:
    """One matrix for MatMulNBits, which has float32 scales and no offsets."""
    if isinstance(weight, NativeRows):
        parts = [_portable(part) for part in weight.parts]
        blocks = tuple(part for part in parts if isinstance(part, BlockWeights))
        return StackedWeights(blocks) if len(blocks) == len(parts) else None
    if isinstance(weight, NativeFloats) or weight.bits not in (4, 8) or weight.block < 32:
        return None
    if weight.offsets is not None or weight.table is not None or weight.scale_steps is not None:
        return None
    activations = weight.activation_bits
    if activations == 16 and weight.bits == 4:
        activations = 32
    scales = weight.scales.astype(np.float32)
    return BlockWeights(
        weight.packed, scales, None, weight.bits, weight.block, weight.shape, activations
    )


def describe_kept(weights: Mapping[str, Native], costs: Mapping[str, float]) -> dict[str, Any]:
    """`quantization` of gptx.json: the bits of each tensor."""
    return {
        "scheme": KEEP,
        "rotated": False,
        "rounding": "none: the blocks of the GGUF file",
        "activations": "8 bits with a scale a block; 16 are two terms of 8, 32 are floats",
        "sensitivity": {kind: float(f"{value:.3g}") for kind, value in costs.items()},
        "tensors": {name: _facts(weight) for name, weight in weights.items()},
    }


def _facts(weight: Native) -> dict[str, Any]:
    match weight:
        case NativeRows(parts):
            return {"parts": [{"rows": part.shape[0], **_facts(part)} for part in parts]}
        case NativeFloats(values):
            return {"bits": 8 * values.itemsize, "block": 0, "activation_bits": 32}
        case NativeBlocks():
            return {
                "bits": weight.bits,
                "block": weight.block,
                "symmetric": weight.offsets is None,
                "scale_bits": 16 if weight.scale_steps is None else 8,
                "activation_bits": weight.activation_bits,
                **({"offsets": True} if weight.offsets is not None else {}),
                **({"table": True} if weight.table is not None else {}),
            }


def precision_of_kept(weights: Mapping[str, Native]) -> str:
    """`precision` of gptx.json: int4 if any weight has fewer than 8 bits, else int8."""
    bits = [part.bits for weight in weights.values() for part in _blocks(weight)]
    return "int4" if any(number < 8 for number in bits) else "int8"
