"""Checks of a checkpoint's tensors: names, shapes and types, and that all values are finite."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from gptx.errors import CheckpointError, GptxError, first_of
from gptx.progress import note
from gptx_models.checkpoints.hf_names import Layout, StoredParameter
from gptx_models.checkpoints.tensor_source import TensorSource

MOST_NAMES = 20  # tensor names in a message
# Storage types that are not weights, or that need a separate scale to be dequantized.
_NOT_WEIGHTS = re.compile(r"I\d|U\d|BOOL|F[468]_|C\d|q?u?int|float8|bool|complex")
_PEFT_NAMES = re.compile(
    r"\.(base_layer|lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector"
    r"|modules_to_save|original_module)\."
)
_CHUNK = 1 << 22  # values that are summed at once


def check_finite(
    value: Tensor, name: str, where: str, error: type[GptxError] = CheckpointError
) -> None:
    """Raise `error` if a tensor holds NaN or infinity, with the index of the first such value.

    A chunk whose sum is finite holds only finite values. So only chunks with another sum are
    searched, and the check of a good tensor reads it once and allocates no mask.
    """
    for number, chunk in enumerate(value.reshape(-1).split(_CHUNK)):
        if torch.isfinite(chunk.sum(dtype=torch.float32)):
            continue
        bad = (~torch.isfinite(chunk)).nonzero()
        if len(bad):  # empty if only the sum overflowed
            first = int(bad[0])
            index = torch.unravel_index(torch.tensor(number * _CHUNK + first), value.shape)
            raise error(
                f"{where}: {name} holds {float(chunk[first])} at {[int(at) for at in index]},"
                " which is no weight: the file is damaged, or its training had diverged"
            )


def check_tensors(
    places: dict[str, StoredParameter],
    shapes: dict[str, torch.Size],
    source: TensorSource,
    layout: Layout,
    *,
    tied_head: str | None,
    is_classifier: bool,
) -> None:
    """Raise CheckpointError with all missing, unexpected, wrongly shaped and quantized tensors.

    places: where each parameter of the model is stored. shapes: the shape of each parameter.
    tied_head: the name of a tensor that is allowed because it repeats the embedding. Tensors of a
    head for another task are left out with a note.
    """
    expected = {
        name: shape
        for parameter, place in places.items()
        for name, shape in zip(place.names, place.shapes(shapes[parameter]))
    }
    found = {name for name in source.shapes if not re.search(layout.ignored, name)} - {tied_head}
    unexpected, other_heads = _split_unexpected(found, expected, layout, is_classifier)
    problems = [
        *_quantized(expected, source),
        *_wrong_names(found, expected, source, unexpected),
        *_wrong_shapes(expected, source),
    ]
    if problems:
        raise CheckpointError(
            f"{source.where}: the weights do not fit the configuration: {'; '.join(problems)}"
        )
    if other_heads:
        note(
            f"{source.where} holds tensors of another head, which are left out:"
            f" {first_of(other_heads, MOST_NAMES)}"
        )


def _split_unexpected(
    found: set[str], expected: dict[str, tuple[int, ...]], layout: Layout, is_classifier: bool
) -> tuple[list[str], list[str]]:
    """(unexpected tensors of this model, tensors of a head for another task).

    A head for another task stands outside the base model's prefix.
    """
    unexpected = sorted(found - set(expected))
    if not layout.prefix or not any(name.startswith(layout.prefix) for name in expected):
        return unexpected, []
    own = (layout.prefix, "score." if is_classifier else "lm_head.")
    return (
        [name for name in unexpected if name.startswith(own)],
        [name for name in unexpected if not name.startswith(own)],
    )


def _quantized(expected: dict[str, tuple[int, ...]], source: TensorSource) -> list[str]:
    quantized = [
        f"{name} is {source.types[name]}"
        for name in expected
        if _NOT_WEIGHTS.match(source.types.get(name, ""))
    ]
    if not quantized:
        return []
    names = first_of(quantized, MOST_NAMES)
    return [f"expected weights of 16, 32 or 64 bits in floating point: {names}"]


def _wrong_names(
    found: set[str],
    expected: dict[str, tuple[int, ...]],
    source: TensorSource,
    unexpected: list[str],
) -> list[str]:
    if adapter := sorted(name for name in found if _PEFT_NAMES.search(name)):
        return [
            "they are of a PEFT model whose adapter was not merged"
            f" ({first_of(adapter, MOST_NAMES)}): call PEFT's merge_and_unload() and save the model"
            " that it returns"
        ]
    missing = [name for name in expected if name not in source.shapes]
    problems = [f"missing tensors: {first_of(missing, MOST_NAMES)}"] if missing else []
    if unexpected:
        problems.append(f"unexpected tensors: {first_of(unexpected, MOST_NAMES)}")
    return problems


def _wrong_shapes(expected: dict[str, tuple[int, ...]], source: TensorSource) -> list[str]:
    wrong = [
        f"{name} is {list(source.shapes[name])} where the configuration says {list(shape)}"
        for name, shape in expected.items()
        if name in source.shapes and tuple(source.shapes[name]) != shape
    ]
    return [f"wrong shapes: {first_of(wrong, MOST_NAMES)}"] if wrong else []
