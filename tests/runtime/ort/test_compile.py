"""gptx compile: compiled graphs compute the same, and are opened only on the machine they fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import gptx
from builders.gptx_command import gptx as command
from builders.native_graphs import needs_library, onnx_runtime_operators
from builders.tiny_artifact import refresh
from gptx.artifact.hashes import check_hashes
from gptx.artifact.layout import REFERENCE, STEP
from gptx.artifact.manifest import read_manifest
from gptx.compile import compile_artifact
from gptx.errors import ArtifactError, OutputError, ParityError, ProviderError, UsageError
from gptx.ort import compiled, native
from gptx.ort.sessions import OLDEST_THAT_COMPILES
from gptx.system.cpu import cpu_features
from gptx.verify import forced_logits, verify

VERSION = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(
    VERSION < OLDEST_THAT_COMPILES, reason="this ONNX Runtime compiles nothing"
)

WINDOW = [5, 9, 2, 7, 7, 1, 30, 40, 3, 8]


@pytest.fixture(autouse=True, scope="module")
def where_compiled_graphs_run() -> Iterator[None]:
    """Native operators run the step graph in place of a compiled graph."""
    with onnx_runtime_operators():
        yield


@pytest.fixture(scope="module")
def made(
    fp32: Path, quantized: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """precision -> compiled artifact."""
    out = tmp_path_factory.mktemp("compiled")
    for precision, source in {"fp32": fp32, "int8": quantized["int8"]}.items():
        compile_artifact(source, out / precision)
    return {precision: out / precision for precision in ("fp32", "int8")}


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made["fp32"], tmp_path / "artifact"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "gptx.json").read_text())
    change(manifest["compiled"])
    (folder / "gptx.json").write_text(json.dumps(manifest))


def opened(folder: Path, **options: Any) -> str:
    """The graph that gptx.load opens, relative to the artifact."""
    with gptx.load(folder, threads=1, **options) as model:
        return model.graph.relative_to(folder).as_posix()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_compiled_and_portable_graph_compute_the_same(
    made: dict[str, Path],
    fp32: Path,
    quantized: dict[str, Path],
    precision: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    portable = gptx.load({"fp32": fp32, **quantized}[precision], threads=1)
    model = gptx.load(made[precision], threads=1)
    assert capsys.readouterr().err == ""
    assert (portable.graph.name, model.graph) == ("model.onnx", made[precision] / compiled.GRAPH)
    np.testing.assert_array_equal(forced_logits(model, WINDOW), forced_logits(portable, WINDOW))
    assert (
        model.generate(WINDOW, max_new_tokens=12).token_ids
        == portable.generate(WINDOW, max_new_tokens=12).token_ids
    )


def test_the_manifest_names_the_machine_and_every_file(made: dict[str, Path], fp32: Path) -> None:
    manifest = read_manifest(made["fp32"])
    check_hashes(manifest)
    entry = manifest.raw["compiled"]
    assert "accepted" not in entry
    assert (entry["onnxruntime"], entry["cpu_features"]) == (
        onnxruntime.__version__,
        cpu_features(),
    )
    written = {
        f.relative_to(made["fp32"]).as_posix() for f in made["fp32"].rglob("*") if f.is_file()
    }
    assert written == {*manifest.files, "gptx.json", "README.md"}
    assert {compiled.GRAPH, compiled.WEIGHTS} <= set(manifest.files)
    for name, facts in read_manifest(fp32).files.items():
        # the portable files are unchanged, but for the reference: its seal holds the compiled ones
        assert manifest.files[name] == facts or name == REFERENCE
    # other loaders look for *.onnx
    assert {file.parent for file in made["fp32"].rglob("*.onnx")} == {made["fp32"] / "onnx"}


def test_weights_are_stored_as_the_kernels_pack_them(made: dict[str, Path]) -> None:
    for folder in made.values():
        graph = onnx.load(folder / compiled.GRAPH, load_external_data=False).graph
        packed = [
            e.key
            for tensor in graph.initializer
            for e in tensor.external_data
            if e.key.startswith("prepacked")
        ]
        assert packed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"onnxruntime": "1.0.0"}, "it is for ONNX Runtime 1.0.0, and this is"),
        ({"architecture": "z80"}, "it is for a processor of architecture z80, and this is"),
        (
            {"cpu": "Some CPU", "cpu_features": ["magic", *cpu_features()]},
            "Some CPU, and this processor lacks magic",
        ),
        ({"cpu_features": cpu_features()[1:]}, f"this processor also has {cpu_features()[0]}"),
        ({"graph": "elsewhere.pb"}, "describes it in a way that this gptx does not read"),
    ],
)
def test_elsewhere_the_portable_graph_is_loaded(
    folder: Path, change: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = gptx.load(folder, threads=1).generate(WINDOW, max_new_tokens=8).token_ids
    edit(folder, lambda entry: entry.update(change))
    model = gptx.load(folder, threads=1)
    assert model.graph == folder / "onnx/model.onnx"
    assert model.generate(WINDOW, max_new_tokens=8).token_ids == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line and line.endswith("the portable graph is loaded")


def test_a_compiled_graph_that_does_not_open(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / compiled.GRAPH).write_bytes(b"\0" * (folder / compiled.GRAPH).stat().st_size)
    assert opened(folder) == "onnx/model.onnx"
    (line,) = capsys.readouterr().err.splitlines()
    assert "graph.pb is not used: ONNX Runtime cannot open it" in line
    with pytest.raises(ArtifactError, match="compiled/graph.pb has sha256"):
        verify(folder, threads=1)


def test_damage_is_caught_by_its_hash(folder: Path) -> None:
    data = bytearray((folder / compiled.WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / compiled.WEIGHTS).write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="compiled/weights.bin has sha256"):
        verify(folder, threads=1)
    (folder / compiled.WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="compiled/weights.bin is missing"):
        gptx.load(folder)


def test_verify_and_inspect_name_the_compiled_graph(made: dict[str, Path]) -> None:
    report = verify(made["fp32"], threads=1)
    assert report.passed and report.graph == compiled.GRAPH
    assert f"ran {compiled.GRAPH} on CPUExecutionProvider" in report.notes
    outcome = command("inspect", made["fp32"])
    assert f"ONNX Runtime {onnxruntime.__version__}: {' '.join(cpu_features())}" in outcome.text
    assert "compiled/weights.bin" in outcome.text


def test_the_command(fp32: Path, tmp_path: Path) -> None:
    outcome = command("compile", fp32, tmp_path / "out")
    assert outcome.status == 0, outcome.err
    assert "compiled for" in outcome.text and "proved on this machine: max_abs" in outcome.text
    again = command("compile", fp32, tmp_path / "out")
    assert again.status == 1 and "exists" in again.err
    # compiling a compiled artifact makes the compiled files anew
    outcome = command("compile", tmp_path / "out", tmp_path / "twice")
    assert outcome.status == 0 and opened(tmp_path / "twice") == compiled.GRAPH
    assert (
        read_manifest(tmp_path / "twice").files.keys()
        == read_manifest(tmp_path / "out").files.keys()
    )


def test_a_graph_outside_the_limits_is_not_written(
    quantized: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(quantized["int8"], tmp_path / "int8"))
    manifest = json.loads((source / "gptx.json").read_text())
    manifest["certificate"]["limits"]["kl_mean"] = 0
    (source / "gptx.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ParityError,
        match="outside the certificate's limits: kl_mean is .*, limit 0; .*: "
        "write it with --accept",
    ):
        compile_artifact(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [source]
    compile_artifact(source, tmp_path / "out", accept=True)
    assert opened(tmp_path / "out") == compiled.GRAPH
    assert "accepted outside its limits" in command("inspect", tmp_path / "out").text


def test_what_cannot_be_compiled(fp32: Path, artifacts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        compile_artifact(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ArtifactError, match="carries no certificate"):
        compile_artifact(artifacts["shared"], tmp_path / "out")
    with pytest.raises(UsageError, match="is the source itself"):
        compile_artifact(fp32, fp32, force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        compile_artifact(fp32, tmp_path / "file")
    broken = Path(shutil.copytree(fp32, tmp_path / "broken"))
    graph = onnx.load(broken / "onnx/model.onnx", load_external_data=False)
    graph.graph.node[0].op_type = "NoSuchOperator"
    (broken / "onnx/model.onnx").write_bytes(graph.SerializeToString())
    refresh(broken)
    with pytest.raises(ArtifactError, match="cannot compile it: .*NoSuchOperator"):
        compile_artifact(broken, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "file"]


def test_an_onnxruntime_that_packs_wrongly(
    fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.31.1 gave NaN for every logit of the int8 artifact here."""
    monkeypatch.setattr(onnxruntime, "__version__", "1.31.1")
    with pytest.raises(
        ProviderError, match="ONNX Runtime 1.31.1 does not keep .* needs 1.32 or newer: pip install"
    ):
        compile_artifact(fp32, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_quantized_copy_does_not_claim_to_be_compiled(
    made: dict[str, Path], tmp_path: Path
) -> None:
    from gpt_export.quantization.quantize import quantize_artifact

    quantize_artifact(made["fp32"], tmp_path / "int8", to="int8", accept=True)
    assert "compiled" not in read_manifest(tmp_path / "int8").raw


def test_threads_that_load_and_close_do_not_disturb_each_other(
    made: dict[str, Path], fp32: Path
) -> None:
    expected = gptx.load(fp32, threads=1).generate(WINDOW, max_new_tokens=8).token_ids

    def load(folder: Path) -> list[int]:
        with gptx.load(folder, threads=1) as model:
            return model.generate(WINDOW, max_new_tokens=8).token_ids

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(load, [fp32, made["fp32"]] * 6)) == [expected] * 12


@needs_library
def test_native_operators_do_not_use_it(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(native.VARIABLE)
    assert opened(made["int8"]) == STEP
