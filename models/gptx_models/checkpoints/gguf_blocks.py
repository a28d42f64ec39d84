"""The blocks of a GGUF file, kept beside a checkpoint's fp32 weights in gguf_blocks.safetensors.

The file holds each quantized matrix as GGUF stores it: the bytes of its blocks, uint8 (rows, bytes
of a row). Its rows are in the order of the fp32 weight. Knows nothing of what the bytes mean.
`gptx quantize --to keep` reads the file; loaders of the checkpoint ignore it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gptx.errors import CheckpointError
from gptx_models.checkpoints.read_files import check_file

BLOCKS = "gguf_blocks.safetensors"
# The types of GGUF whose blocks are kept.
KEPT_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
FLOAT_TYPES = ("F32", "F16", "BF16", "F64")  # types of GGUF without blocks
_AGAIN = "import the GGUF file again"


@dataclass(frozen=True)
class GgufRows:
    """Rows of a weight, as a GGUF file stores them in one tensor.

    type: GGUF's name of the type. data: uint8 (rows, bytes of a row); None for a type that is not
    among KEPT_TYPES, whose values only the fp32 weight holds.
    """

    type: str
    rows: int
    data: np.ndarray | None


def write_blocks(folder: Path, weights: Mapping[str, Sequence[GgufRows]]) -> None:
    """Write gguf_blocks.safetensors. weights: the rows of each weight, by the GPT's own name."""
    tensors = {
        _name(weight, number): np.ascontiguousarray(part.data)
        for weight, parts in weights.items()
        for number, part in enumerate(parts)
        if part.data is not None
    }
    listed = {
        weight: [[part.type, part.rows] for part in parts] for weight, parts in weights.items()
    }
    # The library's save_file would let only the owner read the file.
    (folder / BLOCKS).write_bytes(save(tensors, {"weights": json.dumps(listed)}))


def check_blocks(folder: Path) -> None:
    """Raise CheckpointError if a checkpoint folder has no gguf_blocks.safetensors."""
    path = folder / BLOCKS
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no {BLOCKS}, the blocks of a GGUF file: import the file with this gptx,"
            " `gptx import X.gguf FOLDER`, and export that folder"
        )
    check_file(path)


def read_blocks(folder: Path) -> dict[str, list[GgufRows]]:
    """The rows of each weight, by the GPT's own name.

    Raises CheckpointError if the folder has no such file, or the file is damaged.
    """
    check_blocks(folder)
    path = folder / BLOCKS
    try:
        with safe_open(path, framework="numpy") as file:
            listed = json.loads((file.metadata() or {})["weights"])
            return {
                weight: [
                    _read_rows(file, _name(weight, number), kind, rows)
                    for number, (kind, rows) in enumerate(parts)
                ]
                for weight, parts in listed.items()
            }
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!s:.200}): {_AGAIN}") from error


def _read_rows(file: safe_open, name: str, kind: str, rows: int) -> GgufRows:
    """Raises ValueError for a tensor that does not fit what is listed."""
    if kind not in KEPT_TYPES:
        return GgufRows(kind, rows, None)
    data = file.get_tensor(name)
    if data.dtype != np.uint8 or data.ndim != 2 or len(data) != rows:
        raise ValueError(
            f"{name} is {data.dtype} {list(data.shape)}, expected {rows} rows of bytes"
        )
    return GgufRows(kind, rows, data)


def _name(weight: str, number: int) -> str:
    """The tensor's name: a weight of several tensors, such as q, k and v, numbers them."""
    return f"{weight}.{number}"
