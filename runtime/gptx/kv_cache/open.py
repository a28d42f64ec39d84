"""The keys and values of a session's rows, and the runs of the graph that fill them: token ids in, logits out.

    open_cache(...)               a SharedBufferCache or CudaCache, for graphs that write into a buffer on the CPU or on
                                  CUDA; or a ConcatCache, for graphs that return a longer copy
    .decode(tokens, lengths)      run one new token of each row; None for a row that is idle
    .prefill(new, lengths, outs)  run several new tokens of some rows. new: row -> token ids; outs: row -> the array for
                                  the logits after each of them
    .rewind(lengths)              drop the tokens behind these lengths
    .logits                       (B, 1, V), after each row's last token
    .capacity                     how many tokens a row has room for at the moment

`lengths` is how many tokens each row has in the cache. The session counts them. A cache knows neither sampling nor text.
"""

from __future__ import annotations

from gptx.kv_cache.concat import ConcatCache
from gptx.kv_cache.cuda import CudaCache
from gptx.kv_cache.memory_limit import check_memory, no_memory
from gptx.kv_cache.shared_buffer import SharedBufferCache
from gptx.ort.graph import OnnxGraph
from gptx.ort.providers import CUDA

Cache = SharedBufferCache | CudaCache | ConcatCache


def open_cache(graph: OnnxGraph, batch_size: int, *, limit: int, size: int | None = None) -> Cache:
    """`limit`: the most tokens a row may come to hold; `size`: tokens to make room for now, instead of as they come.
    Raises UsageError for more rows than this machine has memory for."""
    check_memory(graph, batch_size, size or 1)
    try:
        return _open(graph, batch_size, limit, size)
    except MemoryError as error:
        raise no_memory(graph, batch_size, size or 1) from error


def _open(graph: OnnxGraph, batch_size: int, limit: int, size: int | None) -> Cache:
    if graph.manifest.cache == "growing":
        return ConcatCache(graph, batch_size)
    if graph.provider == CUDA:
        return CudaCache(graph, batch_size, limit=limit, size=size)
    return SharedBufferCache(graph, batch_size, limit=limit, size=size)
