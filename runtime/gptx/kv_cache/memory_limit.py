"""The memory that a KV cache needs, compared with the memory of the machine."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from gptx.arguments import integer
from gptx.artifact.cache_parts import position_bytes
from gptx.errors import GptxError, UsageError, shown
from gptx.ort.graph import OnnxGraph
from gptx.system.cpu import memory

UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def default_cache_memory() -> int:
    """Bytes that the rows of a model may take unless the app says otherwise: half of the memory."""
    total, _ = memory()
    return (total or 8 * UNITS["GB"]) // 2


def size_in_bytes(name: str, value: Any) -> int:
    """A number of bytes, or a text such as "1GB", in bytes. Raises UsageError for anything else."""
    number = integer(value)
    if isinstance(value, str) and (
        match := re.fullmatch(r"(\d+(?:\.\d+)?) ?(kB|MB|GB|)", value.strip())
    ):
        number = int(Decimal(match[1]) * UNITS[match[2]])
    if number is None or number < 1:
        raise UsageError(f'{name} is {shown(value)}, expected bytes, or a size such as "1GB"')
    return number


def cache_bytes(graph: OnnxGraph, rows: int, tokens: int) -> int:
    """Bytes of the cache of all layers, for `tokens` tokens in each of `rows` rows."""
    model = graph.manifest.model
    return model.n_layer * rows * tokens * model.n_kv_head * position_bytes(graph.cache_parts)


def check_memory(graph: OnnxGraph, rows: int, tokens: int) -> None:
    """Raise UsageError if a cache and its logits need more than all memory of this machine.

    On CUDA, the cache lies in the device's own memory. Each of its buffers is first filled in this
    machine's memory, one at a time. So only one buffer counts.
    """
    model = graph.manifest.model
    cache = cache_bytes(graph, rows, tokens)
    if graph.device != "cpu":
        cache //= 2 * model.n_layer
    needed = cache + rows * model.n_logits * graph.logits_dtype.itemsize
    total, _ = memory()
    if total is not None and needed > total:
        raise UsageError(
            f"no memory for the cache: {_size(rows, tokens)} would take {needed / 1e9:,.1f} GB "
            f"with their logits, and this machine has {total / 1e9:,.1f} GB; run fewer rows at once"
        )


def no_memory(graph: OnnxGraph, rows: int, tokens: int) -> GptxError:
    """The error to raise if the memory for a cache could not be allocated."""
    size = cache_bytes(graph, rows, tokens) / 1e9
    return GptxError(
        f"no memory for the cache: {_size(rows, tokens)} would take {size:,.1f} GB; "
        "run fewer rows at once"
    )


def _size(rows: int, tokens: int) -> str:
    return f"{rows:,} row{'s' if rows > 1 else ''} of {tokens:,} token{'s' if tokens > 1 else ''}"
