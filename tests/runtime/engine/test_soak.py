"""A minute of benchmarks/soak.py: no deadlock, flat memory, and every text that of its prompt."""

from __future__ import annotations

import pytest

import gptx
from builders.native_graphs import native_kernels, needs_library
from gptx.bench.soak import soak


@pytest.mark.slow
@needs_library
@pytest.mark.usefixtures(native_kernels.__name__)
def test_a_minute_of_everything_at_once() -> None:
    with gptx.load(max_rows=8, cache_memory="16MB") as model:
        report = soak(model, seconds=60, threads=32)
    assert report.passed, report
    assert min(report.requests.values()) > 5 and len(report.requests) == 7
