"""The keys and values of a session's rows, and the runs of the graph that fill them: token ids in, logits out.

    open_cache(...)         -> InPlace or OnDevice (graphs that write into a buffer, on the CPU or on CUDA), or
                               Growing (graphs that return a longer copy)
    .step(tokens, held)     at most one new token of every row; an idle row's is None
    .fill(new, held, outs)  several new tokens of some rows: row -> ids, and row -> where the logits of all of them go
    .rewind(lengths)        forget what comes after
    .logits                 (B, 1, V), each row's last; .capacity: tokens that a row has room for now

`held` is how many tokens each row has in the cache; the session keeps count. None of it knows sampling or text.
"""

from __future__ import annotations

from gptx.kv_cache.concat import Growing
from gptx.kv_cache.cuda import OnDevice
from gptx.kv_cache.memory_limit import check_memory, no_memory
from gptx.kv_cache.shared_buffer import InPlace
from gptx.ort.graph import Engine
from gptx.ort.providers import CUDA

Cache = InPlace | OnDevice | Growing


def open_cache(engine: Engine, batch_size: int, *, limit: int, size: int | None = None) -> Cache:
    """`limit`: the most tokens a row may come to hold; `size`: tokens to make room for now, instead of as they come.
    Raises UsageError for more rows than this machine has memory for."""
    check_memory(engine, batch_size, size or 1)
    try:
        return _open(engine, batch_size, limit, size)
    except MemoryError as error:
        raise no_memory(engine, batch_size, size or 1) from error


def _open(engine: Engine, batch_size: int, limit: int, size: int | None) -> Cache:
    if engine.manifest.cache == "growing":
        return Growing(engine, batch_size)
    if engine.provider == CUDA:
        return OnDevice(engine, batch_size, limit=limit, size=size)
    return InPlace(engine, batch_size, limit=limit, size=size)
