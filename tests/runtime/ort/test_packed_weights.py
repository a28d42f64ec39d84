"""gptx compile on native operators: packed weights give the same bits, and damage is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gptx
from builders.native_graphs import native_kernels, needs_library, onnx_runtime_operators
from gptx.artifact.hashes import check_hashes
from gptx.artifact.layout import REFERENCE
from gptx.artifact.manifest import read_manifest
from gptx.compile import compile_artifact
from gptx.errors import UsageError
from gptx.ort import compiled, native
from gptx.verify import forced_logits, verify

pytestmark = [needs_library, pytest.mark.usefixtures("native_kernels")]
__all__ = ["native_kernels"]

WINDOW = [5, 9, 2, 7, 7, 1, 30, 40, 3, 8]


@pytest.fixture(scope="module")
def made(
    fp32: Path, quantized: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """precision -> artifact with packed weights."""
    out = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(native.VARIABLE, raising=False)
        for precision, source in {"fp32": fp32, "int8": quantized["int8"]}.items():
            compile_artifact(source, out / precision)
    return {precision: out / precision for precision in ("fp32", "int8")}


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made["int8"], tmp_path / "artifact"))


def logits(folder: Path, *, map_weights: bool = False) -> np.ndarray:
    with gptx.load(folder, threads=2, map_weights=map_weights) as model:
        assert model.graph.name == "step.onnx"
        return forced_logits(model, WINDOW)


def damage(folder: Path, place: int, value: bytes) -> None:
    with open(folder / compiled.PACKED, "r+b") as file:
        file.seek(place)
        file.write(value)


def start_of_list(folder: Path) -> int:
    return int.from_bytes((folder / compiled.PACKED).read_bytes()[16:24], "little")


def test_packed_weights_give_the_same_bits(
    made: dict[str, Path],
    fp32: Path,
    quantized: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for precision, source in {"fp32": fp32, "int8": quantized["int8"]}.items():
        expected = logits(source)
        np.testing.assert_array_equal(logits(made[precision]), expected)
        np.testing.assert_array_equal(logits(made[precision], map_weights=True), expected)
    assert capsys.readouterr().err == ""


def test_only_the_weights_are_added_and_everything_is_listed(
    made: dict[str, Path], quantized: dict[str, Path]
) -> None:
    manifest, source = read_manifest(made["int8"]), read_manifest(quantized["int8"])
    check_hashes(manifest)
    assert set(manifest.files) == {*source.files, compiled.PACKED}
    for name, facts in source.files.items():
        assert manifest.files[name] == facts or name == REFERENCE  # which holds the new seal
    report = verify(made["int8"])
    assert report.passed
    assert report.graph == "onnx/step.onnx"


def test_the_weights_come_from_the_file(folder: Path) -> None:
    before = logits(folder)
    damage(folder, 64, bytes(start_of_list(folder) - 64))
    assert not np.array_equal(logits(folder), before)
    assert not np.array_equal(logits(folder, map_weights=True), before)
    with pytest.raises(gptx.GptxError, match=compiled.PACKED):
        check_hashes(read_manifest(folder))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_list_never_gives_wrong_weights(
    made: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "damaged"
    if not folder.exists():
        shutil.copytree(made["int8"], folder)
    whole = (made["int8"] / compiled.PACKED).read_bytes()
    expected = logits(made["int8"])
    start = start_of_list(folder)
    place = data.draw(st.integers(0, 63) | st.integers(start, len(whole) - 1))
    damage(folder, place, bytes([data.draw(st.integers(0, 255))]))
    np.testing.assert_array_equal(logits(folder), expected)
    damage(folder, place, whole[place : place + 1])


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, b"x", "it is damaged"),
        (8, b"\xff", "its weights are packed in another way"),
        (12, b"\xff\xff\xff\xff", "it is damaged"),
        (16, b"\xff" * 8, "it is damaged"),
        ("list", b"other", "lacks a weight"),
    ],
)
def test_a_file_that_does_not_fit_is_not_used(
    folder: Path,
    place: int | str,
    value: bytes,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = logits(folder)
    damage(folder, start_of_list(folder) if place == "list" else int(place), value)
    np.testing.assert_array_equal(logits(folder), expected)
    said = capsys.readouterr().err
    assert f"{folder / compiled.PACKED} is not used: " in said
    assert reason in said
    assert "the weights are packed anew" in said


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("packing", 2, "its weights are packed in way 2, and this gptx has 1"),
        ("step", "0" * 64, "it is of another step graph"),
        ("packed", "compiled/other.bin", "gptx.json describes it in a way"),
    ],
)
def test_weights_of_another_graph_or_gptx_are_not_used(
    folder: Path, field: str, value: object, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = logits(folder)
    raw = json.loads((folder / "gptx.json").read_text())
    raw["compiled"][field] = value
    (folder / "gptx.json").write_text(json.dumps(raw))
    np.testing.assert_array_equal(logits(folder), expected)
    assert reason in capsys.readouterr().err
    with pytest.raises(UsageError, match="runs without packed weights here"):
        gptx.load(folder, map_weights=True)


def test_mapping_needs_packed_weights(quantized: dict[str, Path], made: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="gptx compile writes them"):
        gptx.load(quantized["int8"], map_weights=True)
    with onnx_runtime_operators(), pytest.raises(UsageError, match="map_weights"):
        gptx.load(made["int8"], map_weights=True)
    with pytest.raises(UsageError, match="expected True or False"):
        gptx.load(made["int8"], map_weights=1)  # pyright: ignore[reportArgumentType]


def test_without_the_library_the_portable_graph_runs(made: dict[str, Path]) -> None:
    with onnx_runtime_operators(), gptx.load(made["int8"]) as model:
        assert model.graph.name == "model.onnx"


def test_a_library_of_other_sources_is_not_used(
    quantized: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
    native._load.cache_clear()
    try:
        assert native.describe() == (
            "none: the library of native operators was built from other sources"
        )
        with gptx.load(quantized["int8"]) as model:
            assert model.graph.name == "model.onnx"
    finally:
        native._load.cache_clear()


def test_a_library_that_does_not_load_is_not_used(
    quantized: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "library.so").write_text("no library")
    monkeypatch.setattr(native, "_file", lambda: tmp_path / "library.so")
    native._load.cache_clear()
    try:
        assert "cannot be loaded: " in native.describe()
        with gptx.load(quantized["int8"]) as model:
            assert model.graph.name == "model.onnx"
    finally:
        native._load.cache_clear()
