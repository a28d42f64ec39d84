"""How much memory the cache of a session takes, and whether the machine has so much at all."""

from __future__ import annotations

from gptx.errors import GptxError, UsageError
from gptx.ort.graph import OnnxGraph
from gptx.system.cpu import memory


def cache_bytes(graph: OnnxGraph, rows: int, tokens: int) -> int:
    """Of the keys and values of so many tokens in each of so many rows."""
    model = graph.manifest.model
    return (
        2
        * model.n_layer
        * rows
        * tokens
        * model.n_kv_head
        * model.head_dim
        * graph.cache_dtype.itemsize
    )


def check_memory(graph: OnnxGraph, rows: int, tokens: int) -> None:
    """Raise UsageError where a cache and its rows' logits are larger than all memory of this machine."""
    n_logits = graph.manifest.model.n_logits
    cache = cache_bytes(graph, rows, tokens)
    if graph.device != "cpu":  # it is laid out on the device, by way of one buffer here
        cache //= 2 * graph.manifest.model.n_layer
    needed = cache + rows * n_logits * graph.logits_dtype.itemsize
    total, _ = memory()
    if total is not None and needed > total:
        raise UsageError(
            f"no memory for the cache: {_size(rows, tokens)} would take {needed / 1e9:,.1f} GB with their logits,"
            f" and this machine has {total / 1e9:,.1f} GB; run fewer rows at once"
        )


def no_memory(graph: OnnxGraph, rows: int, tokens: int) -> GptxError:
    """The error for a cache that found no memory."""
    size = cache_bytes(graph, rows, tokens) / 1e9
    return GptxError(
        f"no memory for the cache: {_size(rows, tokens)} would take {size:,.1f} GB; run fewer rows at once"
    )


def _size(rows: int, tokens: int) -> str:
    return f"{rows:,} row{'s' if rows > 1 else ''} of {tokens:,} token{'s' if tokens > 1 else ''}"
