"""Opening artifacts: every kind of bad folder, graph, device and ONNX Runtime gives one clear sentence."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

import gptx
from gptx import providers
from gptx.artifact import check_hashes, read
from gptx.errors import ArtifactError, ProviderError, UsageError
from tiny_artifact import refresh, write_artifact


@pytest.fixture
def folder(artifacts: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(artifacts["shared"], tmp_path / "artifact"))


def change(folder: Path, **values: Any) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    (folder / "gptx.json").write_text(json.dumps({**manifest, **values}))


def test_a_whole_artifact(folder: Path) -> None:
    manifest = read(folder)
    assert (manifest.precision, manifest.cache, manifest.prefill_chunk) == ("fp32", "shared", 8)
    assert manifest.model.n_ctx == 64
    assert manifest.tokens.eos == (0,)
    assert manifest.graph == folder / "onnx/model.onnx"
    assert manifest.certificate == {}
    seen: dict[str, int] = {}
    check_hashes(manifest, progress=lambda name, n: seen.__setitem__(name, seen.get(name, 0) + n))
    assert seen == {name: facts.size for name, facts in manifest.files.items()}
    model = gptx.load(folder, threads=1)
    assert (model.path, model.n_ctx, model.provider) == (folder, 64, "CPUExecutionProvider")


def test_a_changed_file_has_another_hash(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    manifest = read(folder)
    with pytest.raises(ArtifactError, match=r"tokenizer.json has sha256 .*, expected"):
        check_hashes(manifest)


def test_a_graph_or_weights_that_nobody_vouches_for(folder: Path) -> None:
    (folder / "onnx" / "other.onnx_data").write_bytes(b"weights")
    with pytest.raises(ArtifactError, match=r"onnx/other.onnx_data is not among gptx.json's files"):
        check_hashes(read(folder))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere does not exist"):
        gptx.load(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="model.onnx is a file, and an artifact is a folder"):
        gptx.load(folder / "onnx/model.onnx")


def test_a_checkpoint_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=f"is a checkpoint folder, not an artifact: gptx export {tmp_path} OUT"):
        gptx.load(tmp_path)


def test_a_lost_manifest(folder: Path) -> None:
    (folder / "gptx.json").unlink()
    with pytest.raises(ArtifactError, match="holds onnx/model.onnx and no gptx.json"):
        gptx.load(folder)


def test_some_other_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not an artifact: it holds no gptx.json"):
        gptx.load(tmp_path)


def test_all_that_is_wrong_with_files_at_once(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    graph = folder / "onnx/model.onnx"
    graph.write_bytes(graph.read_bytes()[:100])
    (folder / "config.json").write_text((folder / "config.json").read_text() + "  ")
    with pytest.raises(ArtifactError) as error:
        gptx.load(folder)
    assert "tokenizer.json is missing" in str(error.value)
    assert "onnx/model.onnx is cut short: 100 bytes, expected" in str(error.value)
    assert "config.json was changed" in str(error.value)


def test_a_git_lfs_pointer(folder: Path) -> None:
    (folder / "onnx/model.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ArtifactError, match="onnx/model.onnx is a Git LFS pointer, not the file: run git lfs pull"):
        gptx.load(folder)
    (folder / "gptx.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ArtifactError, match="gptx.json is a Git LFS pointer: run git lfs pull"):
        gptx.load(folder)


def test_a_newer_format(folder: Path) -> None:
    change(folder, format_version=2, gptx_version="9.9")
    with pytest.raises(ArtifactError, match=r"format version 2 \(written by gptx 9.9\).*reads up to 1: update gptx"):
        gptx.load(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "is not JSON"), ("[]", "holds a JSON list, expected an object"),
     ('{"format": "other"}', "is not a gptx manifest"), ('{"format": "gptx"}', "format_version None, expected 1")],
)  # fmt: skip
def test_a_broken_manifest(folder: Path, text: str, says: str) -> None:
    (folder / "gptx.json").write_text(text)
    with pytest.raises(ArtifactError, match=says):
        gptx.load(folder)


def test_all_that_is_wrong_with_the_manifest_at_once(folder: Path) -> None:
    change(
        folder, precision="fp8", cache="paged", prefill_chunk=0, model={"n_layer": "2"}, tokens={"eos": 5, "bos": "x"}
    )
    with pytest.raises(ArtifactError) as error:
        gptx.load(folder)
    for says in ("precision is 'fp8', expected one of fp32, fp16, int8, int4", "cache is 'paged'", "prefill_chunk is 0",
                 "model.n_layer is '2'", "model.n_ctx is None", "tokens.eos is 5", "tokens.bos is 'x'"):  # fmt: skip
        assert says in str(error.value)


def test_a_manifest_that_points_outside(folder: Path) -> None:
    change(folder, files={"../secret": {"sha256": "0", "size": 1}})
    with pytest.raises(ArtifactError, match="outside the folder"):
        gptx.load(folder)


def test_a_manifest_without_the_graph(folder: Path) -> None:
    change(folder, files={})
    with pytest.raises(ArtifactError, match="does not list onnx/model.onnx"):
        gptx.load(folder)


def test_broken_side_files(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    refresh(folder)
    with pytest.raises(ArtifactError, match="generation_config.json is not JSON"):
        gptx.load(folder)


def test_no_tokenizer_where_the_manifest_has_one(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    refresh(folder)
    with pytest.raises(ArtifactError, match="has no tokenizer.json, and gptx.json says there is one"):
        gptx.load(folder)


# Graphs


def test_a_graph_that_is_none(folder: Path) -> None:
    (folder / "onnx/model.onnx").write_bytes(b"no graph at all")
    refresh(folder)
    with pytest.raises(ArtifactError, match="model.onnx: ONNX Runtime .* cannot open it: .*[Pp]rotobuf"):
        gptx.load(folder)


def save_graph(folder: Path, graph: onnx.ModelProto) -> None:
    onnx.save(graph, folder / "onnx/model.onnx")
    refresh(folder)


def test_a_graph_with_wrong_inputs(folder: Path) -> None:
    """Another model's graph: no cache, and an input of its own."""
    x = helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["b", "s"])
    types_ = helper.make_tensor_value_info("token_type_ids", onnx.TensorProto.INT64, ["b", "s"])
    y = helper.make_tensor_value_info("scores", onnx.TensorProto.INT64, ["b", "s"])
    graph = helper.make_graph(
        [helper.make_node("Add", ["input_ids", "token_type_ids"], ["scores"])], "g", [x, types_], [y]
    )
    save_graph(folder, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    with pytest.raises(ArtifactError) as error:
        gptx.load(folder)
    assert "model.onnx does not fit gptx.json" in str(error.value)
    assert "inputs are missing: attention_mask, past_key_values.0.key, past_key_values.0.value" in str(error.value)
    assert "inputs that gptx does not feed: token_type_ids" in str(error.value)
    assert "outputs are missing: logits, present.0.key" in str(error.value)


def test_a_graph_of_another_shape(folder: Path) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    change(folder, model={**manifest["model"], "head_dim": 16, "vocab_size": 300})
    with pytest.raises(
        ArtifactError, match=r"past_key_values.0.key is tensor\(float\) .*expected .* 2 heads of 16.*280 values"
    ):
        gptx.load(folder)
    change(folder, cache_dtype="float16")
    with pytest.raises(ArtifactError, match=r"expected tensor\(float16\)"):
        gptx.load(folder)


def test_an_operator_that_onnxruntime_lacks(folder: Path) -> None:
    graph = onnx.load(folder / "onnx/model.onnx")
    graph.graph.node[0].op_type = "NoSuchOperator"
    save_graph(folder, graph)
    with pytest.raises(ArtifactError, match="cannot open it: .*NoSuchOperator"):
        gptx.load(folder)


# Devices


def test_unknown_device_and_threads(folder: Path) -> None:
    with pytest.raises(UsageError, match="device is 'gpu', expected one of cpu, cuda, auto"):
        gptx.load(folder, device="gpu")
    with pytest.raises(UsageError, match="threads is 0"):
        gptx.load(folder, threads=0)


@pytest.mark.skipif("onnxruntime-gpu" in providers.installed_packages(), reason="for the CPU's ONNX Runtime")
def test_cuda_without_onnxruntime_gpu(folder: Path) -> None:
    with pytest.raises(ProviderError, match=r"device 'cuda' needs onnxruntime-gpu.*pip .*\[cuda\]"):
        gptx.load(folder, device="cuda")
    assert gptx.load(folder, device="auto", threads=1).provider == "CPUExecutionProvider"


def test_no_onnxruntime(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "installed_packages", dict)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ProviderError, match=r"ONNX Runtime is not installed: pip install .*\[cpu\].*\[cuda\].*never both"
    ):
        gptx.load(folder)


def test_an_emptied_onnxruntime(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left when one of the two distributions is uninstalled: a folder without the module's contents."""
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    found = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(providers, "installed_packages", lambda: found)
    with pytest.raises(ProviderError, match="onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are both installed"):
        gptx.load(folder)


def test_an_onnxruntime_that_is_too_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    with pytest.raises(ProviderError, match="ONNX Runtime 1.20.1 is too old, gptx needs 1.31 or newer: pip install"):
        gptx.load(folder)


def test_the_default_model_is_what_loads_without_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "default_model")
    monkeypatch.setattr("gptx.model.DEFAULT_MODEL", folder)
    assert gptx.load(threads=1).path == folder


def test_more_threads_than_any_machine_has(folder: Path) -> None:
    """ONNX Runtime takes 99999: it fills the memory with their queues and does not come back."""
    with pytest.raises(UsageError, match="threads is 99999, expected 1 to "):
        gptx.load(folder, threads=99999)


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b"])
def test_a_path_that_cannot_be(path: str) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        gptx.load(path)
