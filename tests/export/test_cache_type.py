"""--cache-type: the type of the step graph's keys and values, proved, run and refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptx
from builders.exported import CONFIG, write_checkpoint
from builders.gptx_command import gptx as command
from builders.native_graphs import native_kernels, native_operators, needs_library
from builders.older_artifact import without_step_graph
from gpt_export.export import export_checkpoint
from gpt_export.quantization.quantize import quantize_artifact
from gpt_export.upgrade import upgrade_artifact
from gptx.artifact.manifest import read_manifest
from gptx.errors import ArtifactError, UsageError
from gptx.ort import native
from gptx.verify import forced_logits, verify

pytestmark = [needs_library, pytest.mark.usefixtures(native_kernels.__name__)]
TEXT = np.random.default_rng(4).integers(0, 300, 300).tolist()
# Bytes of a token: keys and values of 2 layers, 4 heads of 16, and 4 bytes for a scale
BYTES = {"float32": 1024, "float16": 512, "int8": 2 * 2 * 4 * (16 + 4)}
DTYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with room for a cache that grows, and its fp32 artifact with each cache."""
    folder = tmp_path_factory.mktemp("caches")
    write_checkpoint(folder / "checkpoint", dataclasses.replace(CONFIG, n_ctx=320))
    for cache in ("fp32", "fp16", "int8"):
        options = ["--cache-type", cache, "--limit", "max_abs=1"]
        with native_operators():
            outcome = command("export", folder / "checkpoint", folder / cache, *options)
        assert outcome.status == 0, outcome.err
    return folder


@pytest.mark.parametrize(("cache", "near"), [("fp16", 0.01), ("int8", 0.5)])
def test_an_artifact_with_a_smaller_cache(folder: Path, cache: str, near: float) -> None:
    artifact, dtype = folder / cache, DTYPES[cache]
    report = verify(artifact)
    figures = {row.name: row.here for row in report.rows}
    assert report.passed and report.graph == "onnx/step.onnx"
    assert figures["cached"] == figures["pieces"] == figures["batch"] == 0
    assert 0 < figures["mean_abs"] < near / 5

    shown = json.loads(command("inspect", artifact, "--json").text)
    assert shown["manifest"]["step_cache_dtype"] == shown["cache_dtype"] == dtype
    assert shown["cache_bytes_per_token"] == BYTES[dtype]

    with gptx.load(folder / "fp32") as exact, gptx.load(artifact) as model:
        logits = forced_logits(model, TEXT)
        assert 0 < np.abs(logits - forced_logits(exact, TEXT)).max() < near
        with model.session(2) as session:  # its buffers grow with the second feed
            session.feed([TEXT[:40], TEXT[:3]])
            last = session.feed([TEXT[40:299], TEXT[3:200]])
            assert np.array_equal(last, logits[[298, 199]])
        assert model.generate("the cat", max_new_tokens=20).text


def test_quantized_artifacts_with_other_caches(folder: Path, tmp_path: Path) -> None:
    found = {}
    for cache in ("fp32", "int8"):
        options: dict[str, Any] = {"cache_type": cache, "accept": True}
        stated = quantize_artifact(folder / "fp32", tmp_path / cache, to="int8", **options)
        assert read_manifest(tmp_path / cache).step_cache_dtype == DTYPES[cache]
        found[cache] = stated["verified"]["kl_mean"]
    # Rounding the weights loses more than rounding keys and values.
    assert 0 < abs(found["int8"] - found["fp32"]) < 0.2 * found["fp32"]


def test_an_upgrade_with_a_cache_of_fp16(folder: Path, tmp_path: Path) -> None:
    older = without_step_graph(folder / "fp32", tmp_path / "older")
    upgrade_artifact(older, cache_type="fp16")
    assert read_manifest(older).step_cache_dtype == "float16"
    assert verify(older).passed


def test_a_cache_that_loses_too_much_is_not_written(folder: Path, tmp_path: Path) -> None:
    outcome = command("export", folder / "checkpoint", tmp_path / "out", "--cache-type", "int8")
    assert outcome.status == 1 and not list(tmp_path.iterdir())
    assert "with --cache-type int8 is outside its limits (max_abs is" in outcome.err


def test_gptx_json_and_the_graph_must_agree(folder: Path, tmp_path: Path) -> None:
    older = without_step_graph(folder / "fp16", tmp_path / "other")
    upgrade_artifact(older)
    raw = json.loads((older / "gptx.json").read_text("utf-8"))
    (older / "gptx.json").write_text(json.dumps({**raw, "step_cache_dtype": "int8"}), "utf-8")
    with pytest.raises(ArtifactError, match=r"inputs are missing: .*key_scale"):
        gptx.load(older)


def test_a_cache_that_cannot_be_proved_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = dataclasses.replace(CONFIG, n_head=1, n_kv_head=1, head_dim=1040, n_layer=1)
    write_checkpoint(tmp_path / "wide", wide)
    with pytest.raises(UsageError, match="--cache-type fp16 .* heads are too wide"):
        export_checkpoint(tmp_path / "wide", tmp_path / "out", cache_type="fp16")
    raw = json.loads(
        (shutil.copytree(folder / "fp32", tmp_path / "by-optimum") / "gptx.json").read_text("utf-8")
    )
    (tmp_path / "by-optimum" / "gptx.json").write_text(json.dumps({**raw, "gpt_config": None}))
    with pytest.raises(UsageError, match="--cache-type int8 .* optimum exported the model"):
        quantize_artifact(tmp_path / "by-optimum", tmp_path / "out", to="int8", cache_type="int8")
    monkeypatch.setenv(native.VARIABLE, "none")
    with pytest.raises(UsageError, match="--cache-type fp16 is proved on native operators"):
        quantize_artifact(folder / "fp32", tmp_path / "out", to="int8", cache_type="fp16")
    assert not (tmp_path / "out").exists()
