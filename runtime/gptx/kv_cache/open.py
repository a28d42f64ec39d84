"""Open the KV cache of a session: one class for each cache form and device.

    NativeCache         the step graph, on native operators
    SharedBufferCache   graphs that write into a buffer (cache forms shared, scatter), on the CPU
    CudaCache           the same graphs on CUDA
    ConcatCache         graphs that return a longer copy of the cache (form growing), on any device

A cache runs the graph, too: token ids in, logits out. All of them have these methods:

    .decode(tokens, lengths)       run one new token of each row; None for a row that is idle
    .prefill(new, lengths, outs)   run several new tokens of some rows. new: row -> token ids (n,);
                                   outs: row -> array (n, V) to write the logits of each token to
    .rewind(lengths)               drop the tokens behind these lengths
    .skip(n)                       give the first token of an empty row the position n (CPU only)
    .add_rows(rows, used)          make room for more rows, keeping the first `used` tokens of each
    .read(row, start, end)         copies of a row's keys and values, a part for each of past_names
    .write(row, n, parts)          make such parts the first n positions of a row
    .logits                        (B, 1, V), after each row's last token; B: rows, V: the
                                   vocabulary's size, or the outputs of a classification head
    .capacity                      tokens that each row has room for at the moment

lengths: tokens of each row that the cache holds before the call. The session counts them. A cache
knows neither sampling nor text.

Threads: only one thread at a time may call a cache; the session ensures it.
"""

from __future__ import annotations

from gptx.kv_cache.concat import ConcatCache
from gptx.kv_cache.cuda import CudaCache
from gptx.kv_cache.memory_limit import check_memory, no_memory
from gptx.kv_cache.native import NativeCache
from gptx.kv_cache.shared_buffer import SharedBufferCache
from gptx.ort.device import CUDA
from gptx.ort.graph import OnnxGraph

Cache = NativeCache | SharedBufferCache | CudaCache | ConcatCache


def open_cache(graph: OnnxGraph, batch_size: int, *, limit: int, size: int | None = None) -> Cache:
    """An empty cache of `batch_size` rows.

    limit: the most tokens that a row will ever hold. size: tokens per row to allocate now;
    None: the cache grows with use. Raises UsageError if all memory of this machine would be too
    little, GptxError if too little of it is free now.
    """
    check_memory(graph, batch_size, size or 1)
    try:
        return _open(graph, batch_size, limit, size)
    except MemoryError as error:
        raise no_memory(graph, batch_size, size or 1) from error


def _open(graph: OnnxGraph, batch_size: int, limit: int, size: int | None) -> Cache:
    if graph.kernels:
        return NativeCache(graph, batch_size, limit=limit, size=size)
    if graph.manifest.cache == "growing":
        return ConcatCache(graph, batch_size)
    if graph.provider == CUDA:
        return CudaCache(graph, batch_size, limit=limit, size=size)
    return SharedBufferCache(graph, batch_size, limit=limit, size=size)
