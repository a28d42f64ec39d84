"""Export and quantize write two graphs, prove both, and say why there is only one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from builders.four_bit_weights import q4_1
from builders.native_graphs import native_kernels, needs_library
from builders.random_gpt import random_gpt
from gpt_export import export
from gpt_export.quantization.calibrate import linears
from gpt_export.quantization.quantize import quantize_artifact
from gptx.artifact.layout import GRAPH, STEP
from gptx.errors import ParityError
from gptx.ort import native
from gptx.verify import verify
from gptx_models.checkpoints.checkpoint import save_checkpoint
from gptx_models.gpt.config import GPTConfig


def certificate(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gptx.json").read_text("utf-8"))["certificate"]


@pytest.fixture
def proved_natively(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(native.VARIABLE, raising=False)
    export.export_checkpoint(checkpoint, tmp_path / "native")
    return tmp_path / "native"


@needs_library
def test_each_graph_has_figures_of_its_own(
    proved_natively: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = certificate(proved_natively)
    assert stated["environment"]["kernels"] in native.NAMES
    for kernels, graph, figures in (("", STEP, "verified"), ("none", GRAPH, "portable")):
        monkeypatch.setenv(native.VARIABLE, kernels)
        report = verify(proved_natively)
        assert report.graph == graph and report.passed
        certified = {row.name: row.certified for row in report.rows}
        assert certified["mean_abs"] == stated[figures]["mean_abs"]
        assert not [row.name for row in report.rows if row.differs]


@needs_library
@pytest.mark.usefixtures(native_kernels.__name__)
def test_a_wrong_graph_for_other_loaders_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: ir.Model, folder: Path) -> None:
        norm = model.graph.initializers["norm.weight"]
        assert norm.const_value is not None
        norm.const_value = ir.tensor(norm.const_value.numpy() * np.float32(1.1), name=norm.name)
        save(model, folder)

    save = export.save_graph
    monkeypatch.setattr(export, "save_graph", wrong)
    with pytest.raises(ParityError, match=f"of {GRAPH} is"):
        export.export_checkpoint(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@needs_library
def test_a_machine_without_the_library_writes_the_same_graphs(
    proved_natively: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_load", lambda: "the library is not built")
    export.export_checkpoint(checkpoint, tmp_path / "out")
    stated = certificate(tmp_path / "out")
    assert "kernels" not in stated["environment"] and "portable" not in stated
    assert (tmp_path / "out" / STEP).read_bytes() == (proved_natively / STEP).read_bytes()


@needs_library
@pytest.mark.usefixtures(native_kernels.__name__)
def test_fp16_weights_are_computed_with_in_fp32(fp32: Path, tmp_path: Path) -> None:
    stated = quantize_artifact(fp32, tmp_path / "fp16", to="fp16")
    assert stated["environment"]["kernels"] in native.NAMES
    # Only the weights, keys and values are rounded; ONNX Runtime rounds every sum.
    assert stated["verified"]["mean_abs"] < stated["portable"]["mean_abs"]
    assert stated["consistency"]["cached"] == 0


def test_weights_with_offsets_say_that_they_have_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = GPTConfig(vocab_size=97, n_ctx=64, n_layer=1, n_head=2, n_embd=64, n_inner=96)
    gpt = random_gpt(config)
    with torch.no_grad():
        for linear in linears(gpt.layers[0]).values():
            rows, width = linear.weight.shape
            linear.weight.copy_(q4_1((rows, width), seed=rows) * 0.3)
    save_checkpoint(gpt, tmp_path / "checkpoint", tokenizer_files=None, source={}, generation=None)
    export.export_checkpoint(tmp_path / "checkpoint", tmp_path / "fp32")
    capfd.readouterr()
    quantize_artifact(tmp_path / "fp32", tmp_path / "int4", to="int4", accept=True)
    assert says_so(capfd.readouterr().err, "Q4_1 weights only from --to keep")
    assert (tmp_path / "fp32" / STEP).exists() and not (tmp_path / "int4" / STEP).exists()


def says_so(printed: str, reason: str) -> bool:
    (line,) = [line for line in printed.splitlines() if STEP in line]
    return reason in line and "runs on ONNX Runtime's operators" in line
