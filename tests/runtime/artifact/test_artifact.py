"""Opening artifacts: each bad folder, graph, device or ONNX Runtime gives one clear sentence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

import gptx
from builders.hub_cache import as_in_the_cache
from builders.tiny_artifact import refresh, write_artifact
from gptx.artifact.hashes import check_hashes
from gptx.artifact.layout import GRAPH_FOLDERS, SIDE_FILES
from gptx.artifact.manifest import read_manifest
from gptx.errors import ArtifactError, ProviderError, UsageError
from gptx.inspect import describe
from gptx.ort import library
from gptx.verify import verify


@pytest.fixture
def folder(artifacts: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(artifacts["shared"], tmp_path / "artifact"))


def change(folder: Path, **values: Any) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    (folder / "gptx.json").write_text(json.dumps({**manifest, **values}))


def test_a_whole_artifact(folder: Path) -> None:
    manifest = read_manifest(folder)
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
    manifest = read_manifest(folder)
    with pytest.raises(ArtifactError, match=r"tokenizer.json has sha256 .*, expected"):
        check_hashes(manifest)


def test_a_file_that_grows_is_not_read_to_its_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grows between the check of its size and that of its hash."""
    manifest = read_manifest(folder)
    with (folder / "tokenizer.json").open("ab") as file:
        file.truncate(1 << 40)  # a sparse file: no place on the disk, but hours to read
    with pytest.raises(ArtifactError, match="tokenizer.json has sha256 of other bytes"):
        check_hashes(manifest)


# What lies in the folder, and what gptx.json says of it


@pytest.mark.parametrize(
    "name",
    ["onnx/other.onnx_data", "onnx/deeper/weights.bin", "compiled/graph.pb", "chat_template.jinja",
     "gptx_task.json", "added_tokens.json", "gptx_reference.safetensors", "genai_config.json"],
)  # fmt: skip
def test_a_file_that_would_be_read_must_be_listed(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"anything")
    for opened in (gptx.load, verify, describe):
        with pytest.raises(ArtifactError, match=f"{name} is not among gptx.json's files"):
            opened(folder)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"]
)
def test_a_file_taken_out_of_the_list(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    del manifest["files"][name]
    change(folder, files=manifest["files"])
    with pytest.raises(ArtifactError, match=f"{name} is not among gptx.json's files"):
        gptx.load(folder)


def test_files_that_nothing_reads_may_lie_there(folder: Path) -> None:
    for name in ("README.md", ".gitattributes", "notes.txt"):
        (folder / name).write_text("anything")
    read_manifest(folder)


def test_whatever_is_opened_in_the_folder_is_listed(folder: Path) -> None:
    """gptx.load, chat, verify and inspect open only files in SIDE_FILES or GRAPH_FOLDERS."""
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    refresh(folder)
    known = {"gptx.json", *SIDE_FILES}
    for directory in GRAPH_FOLDERS:
        known |= {path.relative_to(folder).as_posix() for path in (folder / directory).rglob("*")}
    code = (
        "import sys, gptx; from gptx.inspect import describe\n"
        "opened = set()\n"
        "def hook(event, args):\n"
        "    if event == 'open': opened.add(str(args[0]))\n"
        "sys.addaudithook(hook)\n"
        "model = gptx.load(sys.argv[1], threads=1); model.chat(); describe(model.path)\n"
        "from gptx.verify import verify\n"
        "try: verify(model.path, threads=1)\n"
        "except gptx.GptxError: pass\n"
        "print(*sorted(path for path in opened if path.startswith(sys.argv[1])), sep='\\n')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    found = {Path(line).relative_to(folder).as_posix() for line in ran.stdout.splitlines()}
    assert {"gptx.json", "tokenizer_config.json", "chat_template.jinja"} <= found <= known


ODD_NAMES = [
    "",
    ".",
    "/etc/passwd",
    "../secret",
    "a\0b",
    "a\ud800b",
    "onnx//model.onnx",
    "./config.json",
    "gptx.json",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_a_name_that_no_file_can_have(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    files = {**manifest["files"], name: {"sha256": "0" * 64, "size": 1}}
    change(folder, files=files)
    with pytest.raises(ArtifactError, match=r"gptx\.json"):
        gptx.load(folder)


@pytest.mark.parametrize("size", [-1, True, "1", 1.5, None])
def test_a_size_that_is_no_number_of_bytes(folder: Path, size: object) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    change(folder, files={**manifest["files"], "config.json": {"sha256": "0" * 64, "size": size}})
    with pytest.raises(ArtifactError, match="expected its sha256 and size"):
        gptx.load(folder)


def test_a_side_file_too_large_to_be_read(folder: Path) -> None:
    with (folder / "generation_config.json").open("r+b") as file:
        file.truncate(1 << 40)
    manifest = json.loads((folder / "gptx.json").read_text())
    change(
        folder,
        files={
            **manifest["files"],
            "generation_config.json": {"sha256": "0" * 64, "size": 1 << 40},
        },
    )
    with pytest.raises(
        ArtifactError, match="generation_config.json has .* bytes, expected at most 16,000,000"
    ):
        gptx.load(folder)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside.json"
    path.write_text('{"secret": 1}')
    return path


def replace(path: Path, kind: str, outside: Path) -> None:
    path.unlink()
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "relative link":
        path.symlink_to(os.path.relpath(outside, path.parent))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["link", "relative link", "device", "pipe", "folder"])
@pytest.mark.parametrize("name", ["config.json", "onnx/model.onnx", "gptx.json"])
def test_only_plain_files_of_the_folder_are_read(
    folder: Path, outside: Path, name: str, kind: str
) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    replace(folder / name, kind, outside)
    if name != "gptx.json":
        secret = hashlib.sha256(outside.read_bytes()).hexdigest()
        size = (folder / name).stat().st_size
        change(folder, files={**manifest["files"], name: {"sha256": "0" * 64, "size": size}})
    else:
        secret = "secret"
    for opened in (gptx.load, verify, describe):
        with pytest.raises(
            ArtifactError, match=f"{name} is a (link that leads out|pipe|folder)"
        ) as error:
            opened(folder)
        assert secret[:6] not in str(error.value)


def test_a_linked_folder_of_graphs(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "onnx", tmp_path / "elsewhere")
    (folder / "onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        ArtifactError, match="onnx/model.onnx is a link that leads out of the folder"
    ):
        gptx.load(folder)


def test_links_within_the_folder_and_to_it_are_good(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").rename(folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    (tmp_path / "link").symlink_to(folder)
    check_hashes(read_manifest(tmp_path / "link"))


@pytest.mark.parametrize("inside", ["", "int8"])
def test_the_hubs_own_cache(folder: Path, tmp_path: Path, inside: str) -> None:
    (tmp_path / "repository").mkdir()
    shutil.move(folder, tmp_path / "repository" / inside)
    there = next((tmp_path / "repository").rglob("gptx.json")).parent.relative_to(
        tmp_path / "repository"
    )
    snapshot = as_in_the_cache(tmp_path / "repository", tmp_path / "cache") / there
    check_hashes(read_manifest(snapshot))
    gptx.load(snapshot, threads=1)
    (tmp_path / "secret").write_bytes((snapshot / "config.json").read_bytes())
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="config.json is a link that leads out"):
        read_manifest(snapshot)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere does not exist"):
        gptx.load(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="model.onnx is a file, and an artifact is a folder"):
        gptx.load(folder / "onnx/model.onnx")


def test_a_checkpoint_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ArtifactError, match=f"is a checkpoint folder, not an artifact: gptx export {tmp_path} OUT"
    ):
        gptx.load(tmp_path)


def test_a_lost_manifest(folder: Path) -> None:
    (folder / "gptx.json").unlink()
    with pytest.raises(ArtifactError, match="holds onnx/model.onnx and no gptx.json"):
        gptx.load(folder)


def test_some_other_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not an artifact: it holds no gptx.json"):
        gptx.load(tmp_path)


def test_one_error_names_all_faults_of_the_files(folder: Path) -> None:
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
    (folder / "onnx/model.onnx").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    with pytest.raises(
        ArtifactError, match="onnx/model.onnx is a Git LFS pointer, not the file: run git lfs pull"
    ):
        gptx.load(folder)
    (folder / "gptx.json").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    with pytest.raises(ArtifactError, match="gptx.json is a Git LFS pointer: run git lfs pull"):
        gptx.load(folder)


def test_a_newer_format(folder: Path) -> None:
    change(folder, format_version=2, gptx_version="9.9")
    with pytest.raises(
        ArtifactError, match=r"format version 2 \(written by gptx 9.9\).*reads up to 1: update gptx"
    ):
        gptx.load(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "is not JSON"), ("[]", "holds a JSON list, expected an object"),
     ('{"format": "other"}', "is not a gptx manifest"),
     ('{"format": "gptx"}', "format_version None, expected 1")],
)  # fmt: skip
def test_a_broken_manifest(folder: Path, text: str, says: str) -> None:
    (folder / "gptx.json").write_text(text)
    with pytest.raises(ArtifactError, match=says):
        gptx.load(folder)


def test_one_error_names_all_faults_of_the_manifest(folder: Path) -> None:
    change(
        folder,
        precision="fp8",
        cache="paged",
        prefill_chunk=0,
        model={"n_layer": "2"},
        tokens={"eos": 5, "bos": "x"},
    )
    with pytest.raises(ArtifactError) as error:
        gptx.load(folder)
    for says in (
        "precision is 'fp8', expected one of fp32, fp16, int8, int4",
        "cache is 'paged'",
        "prefill_chunk is 0",
        "model.n_layer is '2'",
        "model.n_ctx is None",
        "tokens.eos is 5",
        "tokens.bos is 'x'",
    ):
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
    with pytest.raises(
        ArtifactError, match="has no tokenizer.json, and gptx.json says there is one"
    ):
        gptx.load(folder)


# Graphs


def test_a_file_that_is_no_graph(folder: Path) -> None:
    (folder / "onnx/model.onnx").write_bytes(b"no graph at all")
    refresh(folder)
    with pytest.raises(
        ArtifactError, match="model.onnx: ONNX Runtime .* cannot open it: .*[Pp]rotobuf"
    ):
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
        [helper.make_node("Add", ["input_ids", "token_type_ids"], ["scores"])],
        "g",
        [x, types_],
        [y],
    )
    save_graph(
        folder, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    )
    with pytest.raises(ArtifactError) as error:
        gptx.load(folder)
    assert "model.onnx does not fit gptx.json" in str(error.value)
    assert (
        "inputs are missing: attention_mask, past_key_values.0.key, past_key_values.0.value"
        in str(error.value)
    )
    assert "inputs that gptx does not feed: token_type_ids" in str(error.value)
    assert "outputs are missing: logits, present.0.key" in str(error.value)


def test_a_graph_of_another_shape(folder: Path) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    change(folder, model={**manifest["model"], "head_dim": 16, "vocab_size": 300})
    with pytest.raises(
        ArtifactError,
        match=r"past_key_values.0.key is tensor\(float\) .*expected .* 2 heads of 16.*280 values",
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


@pytest.mark.skipif(
    "onnxruntime-gpu" in library.installed_packages(), reason="for the CPU's ONNX Runtime"
)
def test_cuda_without_onnxruntime_gpu(folder: Path) -> None:
    with pytest.raises(ProviderError, match=r"device 'cuda' needs onnxruntime-gpu.*pip .*\[cuda\]"):
        gptx.load(folder, device="cuda")
    assert gptx.load(folder, device="auto", threads=1).provider == "CPUExecutionProvider"


def test_no_onnxruntime(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "installed_packages", dict)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ProviderError,
        match=r"ONNX Runtime is not installed: pip install .*\[cpu\].*\[cuda\].*never both",
    ):
        gptx.load(folder)


def test_an_emptied_onnxruntime(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two packages was uninstalled, and left an empty module folder behind."""
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    found = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(library, "installed_packages", lambda: found)
    with pytest.raises(
        ProviderError, match="onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are both installed"
    ):
        gptx.load(folder)


def test_an_onnxruntime_that_is_too_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    with pytest.raises(
        ProviderError, match="ONNX Runtime 1.20.1 is too old, gptx needs 1.31 or newer: pip install"
    ):
        gptx.load(folder)


def test_the_default_model_is_what_loads_without_a_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_artifact(tmp_path / "default_model")
    monkeypatch.setattr("gptx.model.DEFAULT_MODEL", folder)
    assert gptx.load(threads=1).path == folder


def test_more_threads_than_any_machine_has(folder: Path) -> None:
    """ONNX Runtime would accept 99999, fill the memory with their queues and never return."""
    with pytest.raises(UsageError, match="threads is 99999, expected 1 to "):
        gptx.load(folder, threads=99999)


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b"])
def test_a_path_that_no_file_can_have(path: str) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        gptx.load(path)
