"""llama.cpp: `llamacpp:FILE.gguf[:VARIANT]`, by its C functions in one loop, as its server does it.

A step feeds the last token of each row that decodes, and then prompts, first come first served, as
many tokens as fit into the batch. Rows join and leave between steps.

Variants, joined by commas:

- `unified`: one KV cache for all rows, whose steps of decoding rows and prompts run at once. By
  default each row has its own, where attention reads less.
- `beside=N`: the most tokens of prompts in a step in which rows decode, as gptx has it; 2,048 by
  default, as in llama.cpp's server.
- `chain`: greedy tokens by llama.cpp's sampler, too. By default numpy's argmax, which is faster.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from servers.server import Arrivals, Job, Loaded, Sampling, Served, Server, Workload

BATCH = 2048  # tokens of a step; llama.cpp divides them into runs of 512


@dataclass
class Row:
    """A request that has a sequence of the KV cache.

    sample: (context, index of the token in the step) -> new token.
    """

    request: int
    sequence: int
    tokens: list[int]  # the prompt and what followed
    end: int  # its length at the end
    sample: Callable[[Any, int], int]
    read: int = 0
    fed: list[int] = field(default_factory=list)  # in this step

    @property
    def decoding(self) -> bool:
        return self.read == len(self.tokens) - 1


def load(job: Job) -> Loaded:
    llama: Any = importlib.import_module("llama_cpp")
    options = job.options()
    beside = int(options.get("beside", BATCH))
    # The pointer model.model is valid as long as this object lives.
    model = llama.Llama(str(job.path), n_ctx=job.context, n_threads=job.threads, verbose=False)
    weights = _type(llama, model.model)

    def serve(workload: Workload) -> Served:
        most = min(job.rows, len(workload.prompts))
        context = _context(llama, model.model, job, most, unified="unified" in options)
        batch = llama.llama_batch_init(BATCH, 0, 1)
        samplers = _Samplers(llama, model.model, job.ends, always="chain" in options)
        memory = llama.llama_get_memory(context)
        free, rows = list(range(most)), list[Row]()
        try:
            _run(llama, context, batch, [(0, 0, 0)])  # allocates memory
            llama.llama_memory_seq_rm(memory, 0, -1, -1)
            served, arrivals = Served.empty(workload), Arrivals(workload.arrivals)
            while arrivals.left or rows:
                for request in arrivals.take(len(free)):
                    prompt = workload.prompts[request]
                    end = len(prompt) + workload.new_tokens
                    sample = samplers.one(workload.sampling, request)
                    rows.append(Row(request, free.pop(), list(prompt), end, sample))
                if not rows:
                    arrivals.sleep()
                    continue
                _step(llama, context, batch, rows, beside, served, arrivals)
                for row in [row for row in rows if len(row.tokens) == row.end]:
                    llama.llama_memory_seq_rm(memory, row.sequence, -1, -1)
                    free.append(row.sequence)
                    rows.remove(row)
            return served
        finally:
            samplers.free()
            llama.llama_batch_free(batch)
            llama.llama_free(context)

    return Loaded(serve, f"{weights}, float16 cache")


def _step(
    llama: Any,
    context: Any,
    batch: Any,
    rows: list[Row],
    beside: int,
    served: Served,
    arrivals: Arrivals,
) -> None:
    """Feed all rows that decode, and as much of the prompts as there is room for."""
    decoding = sum(row.decoding for row in rows)
    room = min(beside, BATCH - decoding) if decoding else BATCH
    tokens: list[tuple[int, int, int]] = []
    asked: list[tuple[Row, int]] = []  # rows that get a token, and where in the batch
    for row in rows:
        n = 1 if row.decoding else min(len(row.tokens) - row.read, room)
        room -= 0 if row.decoding else n
        new = range(row.read, row.read + n)
        tokens += [(row.sequence, place, row.tokens[place]) for place in new]
        row.read += n
        if n and row.read == len(row.tokens):
            asked.append((row, len(tokens) - 1))
    _run(llama, context, batch, tokens, {at for _, at in asked})
    for row, at in asked:
        token = row.sample(context, at)
        row.tokens.append(token)
        served.came(row.request, arrivals.now(), token)


def _run(
    llama: Any,
    context: Any,
    batch: Any,
    tokens: list[tuple[int, int, int]],
    wanted: set[int] | None = None,
) -> None:
    """Run tokens, each (sequence, position, token id), with the logits behind those `wanted`."""
    batch.n_tokens = len(tokens)
    for at, (sequence, position, token) in enumerate(tokens):
        batch.token[at], batch.pos[at] = token, position
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        batch.logits[at] = wanted is None or at in wanted
    if status := llama.llama_decode(context, batch):
        raise RuntimeError(f"llama_decode returned {status}")


def _context(llama: Any, model: Any, job: Job, rows: int, *, unified: bool) -> Any:
    params = llama.llama_context_default_params()
    params.n_seq_max, params.n_ctx = rows, rows * (-(-job.context // 256) * 256)
    params.n_batch, params.kv_unified = BATCH, unified
    params.n_threads = params.n_threads_batch = job.threads
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError("llama_init_from_model failed")
    return context


class _Samplers:
    """Functions that draw the next token of a row; end-of-text tokens are never drawn."""

    def __init__(self, llama: Any, model: Any, ends: list[int], *, always: bool) -> None:
        self._llama, self._ends, self._always = llama, ends, always
        self._n = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._chains: list[Any] = []

    def one(self, sampling: Sampling, request: int) -> Callable[[Any, int], int]:
        if not sampling.temperature and not self._always:
            return lambda context, at: int(self._logits(context, at).argmax())
        llama = self._llama
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        self._chains.append(chain)
        if sampling.temperature:
            llama.llama_sampler_chain_add(
                chain, llama.llama_sampler_init_temp(sampling.temperature)
            )
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_top_p(sampling.top_p, 1))
            seed = sampling.seed + request
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist(seed))
        else:
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_greedy())

        def sample(context: Any, at: int) -> int:
            self._logits(context, at)
            return llama.llama_sampler_sample(chain, context, at)

        return sample

    def _logits(self, context: Any, at: int) -> Any:
        """The logits (V,) in llama.cpp's memory, without those of end-of-text tokens."""
        import numpy as np

        pointer = self._llama.llama_get_logits_ith(context, at)
        logits = np.ctypeslib.as_array(pointer, (self._n,))
        logits[self._ends] = -np.inf
        return logits

    def free(self) -> None:
        for chain in self._chains:
            self._llama.llama_sampler_free(chain)


def _type(llama: Any, model: Any) -> str:
    """The type of the weights, for instance Q8_0."""
    text = ctypes.create_string_buffer(128)
    llama.llama_model_desc(model, text, 128)  # "llama 135M Q8_0"
    return text.value.decode().rpartition(" ")[2]


SERVER = Server(("llama-cpp-python",), load)
