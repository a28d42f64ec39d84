"""Fixtures of several test files: tiny artifacts of every cache form, and a tiny model at each stage of the pipeline."""

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
from gpt_export.export import export_checkpoint
from gpt_export.quantization.quantize import quantize_artifact

hypothesis.settings.register_profile("gptx", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("gptx")


@pytest.fixture(scope="session", autouse=True)
def operators_are_read_once() -> Iterator[None]:
    """The exporter reads the sources of 500 ONNX functions for each graph, a quarter of a tiny model's
    export; here it reads them once."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib))
        )
        yield


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, made by the first of pytest's processes that needs it (pytest -n has several)."""
    with FileLock(f"{path}.lock"):
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what is made once and only read: all processes of a run have the same."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "pipeline"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def artifacts(pipeline: Path) -> dict[str, Path]:
    """One model, three times: cache form -> artifact. Its vocabulary is padded by 3 empty ids."""
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
    """The artifact that export makes of `checkpoint`."""
    return once(pipeline / "fp32", lambda path: export_checkpoint(checkpoint, path))


@pytest.fixture(scope="session")
def quantized(pipeline: Path, fp32: Path) -> dict[str, Path]:
    """What quantize makes of `fp32`: recipe -> artifact. Random weights have no room for error, so it is accepted."""
    return {
        to: once(
            pipeline / to, lambda path, to=to: quantize_artifact(fp32, path, to=to, accept=True)
        )
        for to in ("int8", "int8-channels", "int4", "fp16")
    }


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For training: the same sums in the same order each time, and no two tests that wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
