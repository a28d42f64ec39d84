"""Which graph of an artifact runs on the CPU, and what the user is told about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptx
from builders.native_graphs import native_kernels, needs_library, onnx_runtime_operators
from builders.older_artifact import without_step_graph
from gptx.artifact.layout import GRAPH, STEP
from gptx.errors import ArtifactError
from gptx.ort import native, open_sessions
from gptx.verify import forced_logits


@pytest.fixture(autouse=True)
def nothing_was_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_sessions, "_noted", set())


@pytest.fixture
def older(fp32: Path, tmp_path: Path) -> Path:
    return without_step_graph(fp32, tmp_path / "older")


@pytest.fixture
def has_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with native operators; the artifacts of these tests do not run on them."""
    monkeypatch.setattr(native, "available", lambda: True)
    yield


def graph_of(artifact: Path) -> str:
    with gptx.load(artifact) as model:
        return model.graph.relative_to(artifact).as_posix()


def edited(artifact: Path, copy: Path, **values: Any) -> Path:
    """A copy with these values in gptx.json."""
    shutil.copytree(artifact, copy)
    raw = json.loads((copy / "gptx.json").read_text("utf-8"))
    (copy / "gptx.json").write_text(json.dumps({**raw, **values}), "utf-8")
    return copy


@needs_library
@pytest.mark.usefixtures(native_kernels.__name__)
def test_the_step_graph_runs_where_there_are_native_operators(
    fp32: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert graph_of(fp32) == STEP
    assert capfd.readouterr().err == ""


def test_nothing_is_said_where_the_user_chose_onnx_runtime(
    fp32: Path, older: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with onnx_runtime_operators():
        assert (graph_of(fp32), graph_of(older)) == (GRAPH, GRAPH)
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("has_library")
def test_an_older_artifact_says_once_how_it_is_upgraded(
    older: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (graph_of(older), graph_of(older)) == (GRAPH, GRAPH)
    (line,) = capfd.readouterr().err.splitlines()
    assert "runs on ONNX Runtime's operators" in line and f"gptx upgrade {older}" in line


@pytest.mark.usefixtures("has_library")
def test_nothing_is_said_where_there_is_nothing_to_do(
    artifacts: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Graphs that gptx did not write can have no step graph."""
    graph_of(artifacts["shared"])
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("has_library")
def test_kernels_of_another_order_are_not_used(
    fp32: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newer = edited(fp32, tmp_path / "newer", kernel_order=native.KERNEL_ORDER + 1)
    assert graph_of(newer) == GRAPH
    (line,) = capfd.readouterr().err.splitlines()
    assert f"order {native.KERNEL_ORDER + 1}" in line
    assert f"this gptx has order {native.KERNEL_ORDER}" in line


@pytest.mark.parametrize("value", [None, "1", True, -1, 1.5])
def test_an_order_that_is_no_number(value: object, fp32: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="kernel_order"):
        gptx.load(edited(fp32, tmp_path / "wrong", kernel_order=value))


@needs_library
@pytest.mark.usefixtures(native_kernels.__name__)
def test_sessions_on_onnx_runtime_only(fp32: Path) -> None:
    with native.onnx_runtime_only():
        model = gptx.load(fp32)
    with model, gptx.load(fp32) as other:
        assert (model.kernels, model.graph.name) == (None, "model.onnx")
        assert other.kernels and other.graph.name == "step.onnx"
        tokens = list(range(20))
        assert np.allclose(forced_logits(model, tokens), forced_logits(other, tokens), atol=1e-4)
