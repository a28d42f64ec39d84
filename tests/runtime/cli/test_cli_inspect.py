"""gptx inspect: descriptions of artifacts and checkpoints, and refusals of everything else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from builders.gptx_command import gptx
from builders.tiny_artifact import save_manifest, write_artifact
from gptx.inspect import generation_in_words
from gptx.inspect.description import count_in_words, size_in_words
from gptx.model import DEFAULT_MODEL
from gptx.parity.certificate_rows import certificate_rows
from gptx.parity.metrics import Figures

CERTIFICATE = {
    "against": "pytorch fp32",
    "text": {"name": "proof.txt", "sha256": "0123456789abcdef0123456789abcdef", "tokens": 4000},
    "figures": dataclasses.asdict(
        Figures(3999, 4.2e-5, 1e-6, 20.0, 1e-9, 1e-8, 1.0, 0.0, 21.5, 21.5, 0.4)
    ),
    "consistency": {"cached": 2e-5},
    "greedy": {"prompt_tokens": 16, "compared": 64, "identical": 64},
    "limits": {"max_abs": 1e-3, "consistency": 1e-3},
    "accepted": False,
    "environment": {"provider": "CPUExecutionProvider", "cpu": "A CPU", "onnxruntime": "1.32.0"},
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_artifact(
        tmp_path_factory.mktemp("inspect") / "tiny",
        padding=3,
        template="{{ messages }}",
        generation={"do_sample": True, "temperature": 0.8, "top_p": 0.9},
    )
    manifest = json.loads((folder / "gptx.json").read_text())
    manifest |= {
        "certificate": CERTIFICATE,
        "source": {"format": "gguf", "tensor_types": {"a": "Q4_1", "b": "Q4_1"}},
    }
    save_manifest(folder, manifest)
    return folder


def test_an_artifact(artifact: Path) -> None:
    outcome = gptx("inspect", artifact)
    assert outcome.status == 0
    for words in (
        "artifact, format 1, written by gptx 0.1.0",
        "2 layers, 2 heads of 8",
        "64 tokens",
        "shared (one buffer",
        "256 bytes a token, 16.4 kB when full",
        "3 ids of the vocabulary are empty",
        "gptx run --chat",
        "sampling (temperature 0.8, top_p 0.9)",
        "gguf; tensors were Q4_1 (2)",
        "onnx/model.onnx",
        "pytorch fp32, on name proof.txt, sha256 0123456789abcdef, tokens 4000",
        "4.2e-05  (limit 0.001)",
        "64 of 64 tokens identical",
        "CPUExecutionProvider, A CPU, onnxruntime 1.32.0",
        f"gptx verify {artifact}",
    ):
        assert words in outcome.text, words


def test_json(artifact: Path) -> None:
    facts = json.loads(gptx("inspect", artifact, "--json").text)
    assert facts["kind"] == "artifact" and facts["manifest"]["certificate"] == CERTIFICATE
    assert facts["cache_bytes_per_token"] == 2 * 2 * 2 * 8 * 4
    assert facts["files"]["onnx/model.onnx"] == (artifact / "onnx/model.onnx").stat().st_size
    assert facts["bytes"] == sum(facts["files"].values())


def test_a_terminal_gets_the_same_words(artifact: Path) -> None:
    shown = gptx("inspect", artifact, terminal=True).text
    assert "pytorch fp32" in shown and "shared (one buffer" in shown


def test_no_tokenizer_and_no_certificate(tmp_path: Path) -> None:
    text = gptx("inspect", write_artifact(tmp_path / "ids", tokenizer=False)).text
    assert "gptx run --tokens 1,2,3" in text and "greedily" in text
    assert ["certificate", "none"] in [line.split() for line in text.splitlines()]


def test_accepted_outside_its_limits() -> None:
    rows = dict(
        certificate_rows(
            {**CERTIFICATE, "accepted": True, "outside": ["kl_mean is 0.5, the limit 0.01"]}
        )
    )
    assert rows["accepted"] == "outside its limits: kl_mean is 0.5, the limit 0.01"


def test_a_chain_of_certificates() -> None:
    links = [
        {"against": "pytorch fp32", "max_abs": 1e-4},
        {"against": "artifact fp32", "kl_mean": 0.007},
    ]
    rows = dict(certificate_rows({**CERTIFICATE, "chain": links}))
    assert (rows["link 1"], rows["link 2"]) == (
        "pytorch fp32: max_abs 0.0001",
        "artifact fp32: kl_mean 0.007",
    )
    assert "link 1" not in dict(certificate_rows({**CERTIFICATE, "chain": links[:1]}))


def test_figures_of_another_version_are_still_shown() -> None:
    rows = dict(certificate_rows({"figures": {"new": 1.5}, "limits": {"new": 2.0}}))
    assert rows["new"] == "1.5"


def test_generation_in_words() -> None:
    assert generation_in_words({}) == "greedily"
    config = {"do_sample": True, "repetition_penalty": 1.2, "max_new_tokens": 50}
    assert (
        generation_in_words(config)
        == "sampling (temperature 1), repetition penalty 1.2, up to 50 tokens"
    )


def checkpoint(folder: Path, model_type: str = "llama") -> Path:
    folder.mkdir()
    config = {"model_type": model_type, "num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 50}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {"a": np.zeros((4, 8), np.float32), "b": np.zeros(3, np.float16)},
        folder / "model.safetensors",
    )
    return folder


def _places(value: object, place: tuple = ()) -> Iterator[tuple]:
    """The path (keys and indices from the top) of every value inside a JSON value."""
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:1])
        if isinstance(value, list)
        else ()
    )
    for key, inner in pairs:
        yield (*place, key)
        yield from _places(inner, (*place, key))


WIDE = [pytest.param(odd, marks=pytest.mark.wide) for odd in (-1, "x", {"x": 1})]


@pytest.mark.parametrize("odd", [None, [1], 10**9, *WIDE])
def test_an_odd_value_anywhere_in_the_manifest_is_shown_or_refused(
    tmp_path: Path, odd: object
) -> None:
    folder = shutil.copytree(DEFAULT_MODEL, tmp_path / "model")
    text = (folder / "gptx.json").read_text()
    for *above, last in _places(json.loads(text)):
        manifest = json.loads(text)
        inner = manifest
        for key in above:
            inner = inner[key]
        inner[last] = odd
        (folder / "gptx.json").write_text(json.dumps(manifest))
        outcome = gptx("inspect", folder)  # a traceback would come through
        assert outcome.status == 0 or (outcome.status == 1 and outcome.err.startswith("gptx: "))


def test_a_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "my model")
    outcome = gptx("inspect", folder)
    assert outcome.status == 0
    assert "35 in 2 tensors" in outcome.text and "F32 (1), F16 (1)" in outcome.text
    assert "layers 2, width 8, vocabulary 50" in outcome.text
    assert f"gptx export '{folder}' '{folder}-onnx'" in outcome.text
    facts = json.loads(gptx("inspect", folder, "--json").text)
    assert (facts["kind"], facts["parameters"]) == ("checkpoint", 35)


def test_a_checkpoint_of_another_kind(tmp_path: Path) -> None:
    text = gptx("inspect", checkpoint(tmp_path / "other", "qwen3")).text
    assert "does not cover" in text and "--via optimum" in text


def test_a_checkpoint_whose_weights_are_a_pointer(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "pointer")
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    outcome = gptx("inspect", folder)
    assert outcome.status == 1 and "git lfs pull" in outcome.err and outcome.err.count("\n") == 1


def test_what_is_neither(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("model.gguf", f"gptx import {tmp_path / 'model.gguf'} OUT"),
        ("text.txt", "is a file"),
        ("empty", "neither an artifact nor a checkpoint"),
        ("missing", "does not exist"),
    ):
        outcome = gptx("inspect", tmp_path / name)
        assert (
            (outcome.status, outcome.out) == (1, b"")
            and words in outcome.err
            and outcome.err.count("\n") == 1
        )


def test_a_broken_artifact(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "cut")
    (folder / "onnx/model.onnx").write_bytes(b"x")
    outcome = gptx("inspect", folder)
    assert outcome.status == 1 and "cut short" in outcome.err


def test_counts_and_sizes() -> None:
    assert [count_in_words(n) for n in (999, 1500, 134_515_008, 1_500_000_000)] == [
        "999",
        "1.5k",
        "134.5M",
        "1.5B",
    ]
    assert [size_in_words(n) for n in (12, 1500, 2e6, 3e9)] == [
        "12 bytes",
        "1.5 kB",
        "2.0 MB",
        "3.0 GB",
    ]
