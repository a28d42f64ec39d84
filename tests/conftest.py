"""Fixtures of several test files.

Tiny artifacts of every cache form, and a tiny model at each stage of the pipeline.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from filelock import FileLock

from builders.exported import write_checkpoint
from builders.tiny_artifact import write_artifact
from builders.traced_graphs import traced_once
from gpt_export.certificate import eval_text
from gpt_export.export import export_checkpoint
from gpt_export.graph import build
from gpt_export.quantization import quantize

hypothesis.settings.register_profile("gptx", deadline=None)  # tests must pass on a busy machine
hypothesis.settings.load_profile("gptx")


def pytest_configure() -> None:
    """One PyTorch thread in each of several pytest processes, and in the processes they start."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, made by the first pytest process that needs it (`pytest -n` starts several)."""
    with FileLock(f"{path}.lock"):
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for artifacts that are made once and only read, shared by all pytest processes."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "pipeline"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def graphs_are_traced_once(pipeline: Path) -> Iterator[None]:
    """Trace each graph structure once per test run, and read the exporter's 500 functions once.

    Tracing takes seconds even for a tiny model; a quarter of that is the reading of the functions.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    folder = pipeline / "traces"
    folder.mkdir(exist_ok=True)
    registry = functools.cache(ONNXRegistry.from_torchlib)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(registry))
        patch.setattr(build, "trace", traced_once(build.trace, folder))
        yield


@pytest.fixture(scope="session", autouse=True)
def short_proofs() -> Iterator[None]:
    """Prove on 1,024 tokens instead of 4,096, and calibrate on 2,048 instead of 8,192."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(eval_text.load_eval_text.__kwdefaults__, "most", 1024)
        patch.setattr(quantize, "CALIBRATION_TOKENS", 2048)
        yield


@pytest.fixture(scope="session")
def artifacts(pipeline: Path) -> dict[str, Path]:
    """One model in three artifacts, by cache form. Its vocabulary is padded by 3 unused ids."""
    return {
        cache: once(
            pipeline / cache,
            lambda path, cache=cache: write_artifact(path, cache, padding=3, prefill_chunk=8),
        )
        for cache in ("shared", "growing", "scatter")
    }


@pytest.fixture(scope="session")
def checkpoint(pipeline: Path) -> Path:
    """A GPT-2 of two small layers with a byte-level tokenizer."""
    return once(pipeline / "checkpoint", write_checkpoint)


@pytest.fixture(scope="session")
def fp32(pipeline: Path, checkpoint: Path) -> Path:
    """The fp32 artifact of `checkpoint`."""
    return once(pipeline / "fp32", lambda path: export_checkpoint(checkpoint, path))


@pytest.fixture(scope="session")
def quantized(pipeline: Path, fp32: Path) -> dict[str, Path]:
    """`fp32` quantized, by recipe. Random weights exceed the limits, so `accept` is set."""
    return {
        to: once(
            pipeline / to,
            lambda path, to=to: quantize.quantize_artifact(fp32, path, to=to, accept=True),
        )
        for to in ("int8", "int8-channels", "int4", "fp16")
    }


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One PyTorch thread: training adds in a fixed order, and tests do not wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
