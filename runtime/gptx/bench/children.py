"""Run an engine in a process of its own: a dict in, a dict out, its errors as one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from gptx.bench.peers import Contender
from gptx.errors import GptxError, UsageError

Answer = dict[str, Any]


def ask(
    one: Contender,
    *,
    threads: int,
    device: str = "cpu",
    context: int = 0,
    ends: Sequence[int] = (),
    **asked: Any,
) -> Answer:
    """Run an engine in a process of its own; returns its answer (see gptx.bench.measure).

    threads, device, context, ends: the Job. asked: exactly one request, `prepare`, `speed` or
    `quality`.

    Raises UsageError if a package is missing, GptxError if the engine fails or its process ends.
    """
    job: dict[str, Any] = {
        "path": str(one.path.absolute()),
        "variant": one.variant,
        "threads": threads,
    }
    job |= {"context": context, "ends": list(ends), "device": device}
    done = run(
        ["gptx.bench.measure", one.engine], json.dumps({"job": job, **asked}), threads=threads
    )
    if done.returncode:
        raise GptxError(f"{one.label} ended {_how(done.returncode)}{_last_words(done.stderr)}")
    answer: Answer = json.loads(done.stdout.splitlines()[-1])
    if "missing" in answer:
        raise UsageError(f"{one.label} needs the package {answer['missing']}: {one.does.install}")
    if "error" in answer:
        raise GptxError(f"{one.label} failed: {answer['error']}")
    return answer


def bandwidth(threads: int, device: str = "cpu") -> dict[str, float]:
    """Bytes a second of the CPU's memory (or the GPU's), for each way of reading."""
    module = ["gptx.bench.bandwidth", str(threads)] if device == "cpu" else ["gptx.bench.device"]
    # One thread for BLAS, because gptx.bench.bandwidth starts its own threads.
    done = run(module, "", threads=1)
    if done.returncode:
        raise GptxError(f"the memory's speed could not be measured{_last_words(done.stderr)}")
    return json.loads(done.stdout)


def run(module: list[str], text: str, *, threads: int) -> subprocess.CompletedProcess[str]:
    """Run a Python module with `text` on standard input and this process's import path.

    -P keeps the current folder, where the user may have files of any name, off the import path.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-P", "-m", *module]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, errors="replace", env=environment
    )


def _how(status: int) -> str:
    if status > 0:
        return f"with exit status {status}"
    # SIGILL: built for another processor; SIGKILL: out of memory
    return f"by {signal.Signals(-status).name}"


def _last_words(text: str) -> str:
    words = text.strip().splitlines()
    return f": {words[-1].strip()}" if words else ""
