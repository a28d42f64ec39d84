"""Fixtures of several test files: tiny artifacts of every cache form, and a tiny model at each stage of the pipeline."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from exported import write_checkpoint
from gpt_export.export import export_checkpoint
from gpt_export.quantize import quantize_artifact
from tiny_artifact import write_artifact

hypothesis.settings.register_profile("gptx", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("gptx")


@pytest.fixture(scope="session", autouse=True)
def operators_are_read_once() -> Iterator[None]:
    """The exporter reads the sources of 500 ONNX functions for each graph, a quarter of a tiny model's
    export; here it reads them once."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model, three times: cache form -> artifact. Its vocabulary is padded by 3 empty ids."""
    folder = tmp_path_factory.mktemp("artifacts")
    return {
        cache: write_artifact(folder / cache, cache, padding=3, prefill_chunk=8)
        for cache in ("shared", "growing", "scatter")
    }


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of two small layers with a byte-level tokenizer."""
    return write_checkpoint(tmp_path_factory.mktemp("pipeline") / "checkpoint")


@pytest.fixture(scope="session")
def fp32(checkpoint: Path) -> Path:
    """The artifact that export makes of `checkpoint`."""
    out = checkpoint.with_name("fp32")
    export_checkpoint(checkpoint, out)
    return out


@pytest.fixture(scope="session")
def quantized(fp32: Path) -> dict[str, Path]:
    """What quantize makes of `fp32`: recipe -> artifact. Random weights have no room for error, so it is accepted."""
    made = {to: fp32.with_name(to) for to in ("int8", "int8-channels", "int4", "fp16")}
    for to, out in made.items():
        quantize_artifact(fp32, out, to=to, accept=True)
    return made


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For training: the same sums in the same order each time, and no two tests that wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
