"""Export and quantize write two graphs, prove both, and say why there is only one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from builders.block_files import write_blocks_llama
from builders.native_graphs import native_kernels, needs_library, onnx_runtime_operators
from gpt_export import export
from gpt_export.quantization.quantize import quantize_artifact
from gpt_export.quantization.recipes import SCHEMES
from gptx.artifact.layout import GRAPH, STEP
from gptx.errors import ParityError
from gptx.ort import native
from gptx.parity.measure import CONSISTENCY
from gptx.verify import verify
from gptx_models.importers import import_checkpoint


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
def test_consistency_is_certified_for_the_operators_that_it_was_measured_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with onnx_runtime_operators():
        export.export_checkpoint(checkpoint, tmp_path / "portable")
    export.export_checkpoint(checkpoint, tmp_path / "native")
    with_one_measured = tmp_path / "native" / "gptx.json"
    manifest = json.loads(with_one_measured.read_text("utf-8"))
    del manifest["certificate"]["portable"]
    with_one_measured.write_text(json.dumps(manifest), "utf-8")
    for made, other in (("portable", ""), ("native", "none")):
        monkeypatch.setenv(native.VARIABLE, other)
        rows = verify(tmp_path / made).rows
        assert {row.name for row in rows if row.certified is None} == set(CONSISTENCY)
        assert not [row.name for row in rows if row.differs or not row.ok]


@needs_library
@pytest.mark.usefixtures(native_kernels.__name__)
def test_fp16_weights_are_computed_with_in_fp32(fp32: Path, tmp_path: Path) -> None:
    stated = quantize_artifact(fp32, tmp_path / "fp16", to="fp16")
    assert stated["environment"]["kernels"] in native.NAMES
    # Only the weights, keys and values are rounded; ONNX Runtime rounds every sum.
    assert stated["verified"]["mean_abs"] < stated["portable"]["mean_abs"]
    assert stated["consistency"]["cached"] == 0


@needs_library
@pytest.mark.usefixtures(native_kernels.__name__)
def test_weights_with_offsets_have_both_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GGUF file in Q4_1: both graphs compute with the same bytes.

    Activations stay in fp32, so that nothing is lost but the last digits of the offsets.
    """
    exact = dataclasses.replace(SCHEMES["int4"], kept_activation_kl=1e-9)
    monkeypatch.setitem(SCHEMES, "int4", exact)
    kinds = {"token_embd": "Q8_0"}
    file = write_blocks_llama(tmp_path / "x.gguf", lambda name: kinds.get(name, "Q4_1"), n_layer=2)
    checkpoint = import_checkpoint(str(file), tmp_path / "checkpoint")
    export.export_checkpoint(checkpoint, tmp_path / "fp32")
    stated = quantize_artifact(tmp_path / "fp32", tmp_path / "int4", to="int4")
    assert stated["environment"]["kernels"] in native.NAMES and stated["consistency"]["cached"] == 0
    assert stated["verified"]["kl_mean"] < 1.2 * stated["portable"]["kl_mean"] < 0.003

    graph = ir.load(tmp_path / "int4" / STEP).graph
    copies = [node.attributes.get_int("copies", 0) for node in graph if node.op_type == "Linear"]
    assert len(copies) == 9 and all(copies[:-1]) and copies[-1] == 0  # the head has no offsets
    stored = [value.const_value for value in graph.initializers.values()]
    names = {one.location for one in stored if isinstance(one, ir.ExternalTensor)}
    assert names == {"model.onnx_data"}
    assert all(isinstance(one, ir.ExternalTensor) or one.nbytes <= 1024 for one in stored if one)
