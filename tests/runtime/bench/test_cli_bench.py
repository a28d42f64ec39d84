"""gptx bench: all requested figures are in the tables, the JSON and the picture, as numbers.

How large they are is not tested.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptx as runtime
from builders.gptx_command import gptx
from gptx.bench import children, peers
from gptx.ort.library import installed_packages
from gptx.verify import forced_logits

QUICK = ("--rounds", "1", "--repeats", "1", "--new-tokens", "4", "--threads", "1", "--batch", "1")


@pytest.fixture(autouse=True)
def given_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement of memory's speed, which takes a second and has its own test."""
    monkeypatch.setattr(children, "bandwidth", lambda threads, device: {"dot": 2e9, "sum": 1e9})


def test_figures_of_two_artifacts(artifacts: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file, png = tmp_path / "bench.json", tmp_path / "bench.png"
    peer = f"gptx:{artifacts['growing']}"
    command = [
        "bench",
        artifacts["shared"],
        "--against",
        peer,
        "--prompt-tokens",
        "16",
        "8",
        "--rounds",
        "2",
    ]
    settings = ("--repeats", "1", "--new-tokens", "4", "--threads", "1", "--batch", "3")
    outcome = gptx(*command, *settings, "--json", file, "--picture", png)
    assert outcome.status == 0, outcome.err
    for word in (
        "gptx:shared",
        "gptx:growing",
        "2.0 GB/s",
        "prompt of 8 tokens",
        "batch of 3",
        "peak loading",
    ):
        assert word in outcome.text
    *_, verdict, next_step = outcome.text.splitlines()
    assert verdict.startswith("gptx:shared after 8, 16 tokens decodes")
    assert next_step == f'next: gptx run -m {artifacts["shared"]} "Once upon a time"'
    assert "round 2 of 2: gptx:growing" in outcome.err

    facts = json.loads(file.read_text())
    assert (
        facts["cpu_features"]
        and facts["settings"]["prompt_tokens"] == [8, 16]
        and facts["command"][:5] == "gptx "
    )
    assert facts["bandwidth"]["bytes_per_s"] == 2e9 and facts["bandwidth"]["kernel"] == "dot"
    shared, growing = facts["engines"]
    assert shared["versions"]["onnxruntime"] and shared["limit_tokens_per_s"] > 0
    decode = shared["prompts"]["16"]["decode_tokens_per_s"]
    assert decode["samples"] == 2 and 0 < decode["lowest"] <= decode["median"] <= decode["highest"]
    share = decode["median"] * shared["read_bytes_per_token"] / 2e9
    assert math.isclose(shared["prompts"]["16"]["share_of_limit"]["median"], share, rel_tol=1e-4)
    assert growing["prompts"]["8"]["same_tokens"]["median"] == 5  # one model in two cache forms
    assert shared["batch"]["same_rows"]["lowest"] == 3 and shared["batch"]["gain"]["median"] > 0
    assert set(shared["loading"]) == {"import_s", "load_s", "first_token_from_load_s"}
    if sys.platform == "linux":
        assert set(shared["memory"]) == {"loaded", "used", "peak_loading", "peak_running"}
        # It may be negative: a tiny model takes less memory than ONNX Runtime frees on loading.
        assert math.isfinite(shared["memory"]["used"]["times_weights"])
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def quality(*args: str | Path, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "quality.json"
    outcome = gptx("bench", *args, "--rounds", "0", "--quality", "--threads", "1", "--json", file)
    assert outcome.status == 0, outcome.err
    assert "first token of each window not scored" in outcome.text
    return json.loads(file.read_text())["quality"]


def test_quality_against_what_the_artifact_carries(
    quantized: dict[str, Path], tmp_path: Path
) -> None:
    found = quality(quantized["int8"], tmp_path=tmp_path)
    (model,) = found["models"]
    certificate = json.loads((quantized["int8"] / "gptx.json").read_text())["certificate"]
    assert model["engine"] == "gptx:int8" and "carries of its fp32 reference" in found["reference"]
    assert (
        0 < model["kl_mean"] < 10 * certificate["figures"]["kl_mean"]
        and 0 < model["same_top1"] <= 1
    )


def test_quality_against_fp32_on_a_text(
    quantized: dict[str, Path], fp32: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the dog and the log sat on the mat " * 4)
    args = [
        quantized["int8"],
        "--reference",
        fp32,
        "--text",
        text,
        "--window",
        "16",
        "--tokens",
        "40",
    ]
    found = quality(*args, tmp_path=tmp_path)
    assert [one["engine"] for one in found["models"]] == ["gptx:fp32", "gptx:int8"]
    protocol = found["protocol"]
    assert (protocol["window"], protocol["tokens"], protocol["scored"]) == (16, 40, 37)
    with runtime.load(fp32) as exact, runtime.load(quantized["int8"]) as rounded:
        ids = exact.encode(text.read_text())[:40]
        kl, nll = [], []
        for window in (ids[:16], ids[16:32], ids[32:]):
            p, q = (_log_softmax(forced_logits(model, window)) for model in (exact, rounded))
            kl += (np.exp(p) * (p - q)).sum(-1).tolist()
            nll += [-q[i, token] for i, token in enumerate(window[1:])]
    same, worse = found["models"]
    assert same["kl_mean"] == same["max_abs"] == same["change"] == 0 and same["same_top1"] == 1
    assert math.isclose(worse["kl_mean"], np.mean(kl), rel_tol=1e-4)
    assert math.isclose(worse["perplexity"], math.exp(np.mean(nll)), rel_tol=1e-5)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.float64)
    return exact - np.log(np.exp(exact).sum(-1, keepdims=True))


def test_transformers_is_the_reference(fp32: Path, checkpoint: Path, tmp_path: Path) -> None:
    found = quality(fp32, "--against", f"transformers:{checkpoint}", tmp_path=tmp_path)
    assert [one["engine"] for one in found["models"]] == ["transformers:checkpoint", "gptx:fp32"]
    assert found["models"][1]["kl_mean"] < 1e-8 and found["models"][1]["max_abs"] < 1e-3


def test_pytorch_beside_gptx(fp32: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Also decodes a batch, whose rows have one length, as all batches of gptx bench."""
    file = tmp_path / "bench.json"
    peer = f"transformers:{checkpoint}"
    outcome = gptx(
        "bench", fp32, "--against", peer, "--prompt-tokens", "8", *QUICK[:-1], "3", "--json", file
    )
    assert outcome.status == 0, outcome.err
    ours, theirs = json.loads(file.read_text())["engines"]
    assert theirs["prompts"]["8"]["same_tokens"]["median"] == 5
    assert ours["batch"]["same_rows"]["lowest"] == theirs["batch"]["same_rows"]["lowest"] == 3


@pytest.mark.slow
def test_compiled_pytorch_beside_gptx(fp32: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Needs a C++ compiler, and takes a minute."""
    file = tmp_path / "bench.json"
    peer = f"torchcompile:{checkpoint}"
    outcome = gptx(
        "bench", fp32, "--against", peer, "--prompt-tokens", "8", *QUICK[:-1], "3", "--json", file
    )
    assert outcome.status == 0, outcome.err
    theirs = json.loads(file.read_text())["engines"][1]
    assert (
        theirs["prompts"]["8"]["same_tokens"]["median"] == 5
        and theirs["batch"]["same_rows"]["lowest"] == 3
    )


def test_genai_beside_gptx(fp32: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="pip install '.[interop]'")
    file = tmp_path / "bench.json"
    command = [
        "bench",
        fp32,
        "--against",
        "genai",
        "--prompt-tokens",
        "8",
        *QUICK,
        "--quality",
        "--json",
        file,
    ]
    outcome = gptx(*command)
    assert outcome.status == 0, outcome.err
    facts = json.loads(file.read_text())
    assert facts["engines"][1]["engine"] == "genai:fp32" and facts["engines"][1]["batch"] == {}
    assert facts["engines"][1]["prompts"]["8"]["same_tokens"]["median"] == 5
    assert facts["quality"]["models"][1]["max_abs"] < 1e-3


def test_without_an_artifact_the_default_model() -> None:
    outcome = gptx("bench", "--prompt-tokens", "4", *QUICK)
    assert outcome.status == 0, outcome.err
    assert "gptx:default_model: weights in int8" in outcome.text and "batch of" not in outcome.text


def test_usual_prompts_that_do_not_fit_are_said_to_be_shorter(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat")
    outcome = gptx("bench", artifacts["shared"], "--text", tmp_path / "text.txt", *QUICK)
    assert outcome.status == 0, outcome.err
    assert (
        "context holds 64 tokens, so prompts have 59 tokens (not 128 and 512), and 4 are"
        " generated\n" in outcome.err
    )
    assert "text.txt, repeated because it is shorter than a prompt" in outcome.text
    assert (
        "context holds"
        not in gptx("bench", artifacts["shared"], "--prompt-tokens", "8", *QUICK).err
    )


def refused(*args: str | Path) -> str:
    outcome = gptx("bench", *args)
    assert outcome.status != 0 and outcome.out == b""
    assert outcome.err.startswith("gptx: ") and outcome.err.count("\n") == 1
    return outcome.err


def test_errors_are_one_sentence(artifacts: dict[str, Path], tmp_path: Path) -> None:
    model = artifacts["shared"]
    assert "no peer" in refused(model, "--against", "vllm:x")
    assert "does not exist" in refused(model, "--against", "llamacpp:nowhere.gguf")
    assert "needs a path" in refused(model, "--against", "llamacpp")
    if peers.installed("onnxruntime-genai"):
        assert "genai_config.json" in refused(model, "--against", "genai")
    assert "takes a path and nothing behind it" in refused(model, "--against", f"gptx:{model}:int8")
    assert "--quality only" in refused(model, "--against", f"torch:{model}")
    (tmp_path / "x.gguf").write_bytes(b"")
    if peers.installed("llama-cpp-python"):
        elsewhere = refused(
            model, "--against", f"llamacpp:{tmp_path / 'x.gguf'}", "--device", "cuda"
        )
        assert (
            "llamacpp:x.gguf is measured on the CPU only: leave it out, or take --device cpu"
            in elsewhere
        )
    assert "give --quality too" in refused(model, "--window", "64")
    assert "--repeats does nothing without" in refused(
        model, "--rounds", "0", "--quality", "--repeats", "3"
    )
    assert "--force does nothing without" in refused(model, "--force")
    assert "more than the 64 tokens" in refused(model, "--quality", "--window", "65")
    assert "end with .png" in refused(model, "--picture", tmp_path / "picture.pdf")
    assert "name two files" in refused(
        model, "--picture", tmp_path / "a.png", "--json", tmp_path / "a.png"
    )
    assert "measured twice" in refused(model, "--against", f"gptx:{model}")
    assert "do not fit into the context" in refused(model, "--prompt-tokens", "60")
    assert "give one with --text" in refused(model, "--quality")
    assert "at least one round" in refused(model, "--rounds", "0")
    assert "requires an argument" in refused(model, "--against")
    (tmp_path / "there.json").write_text("{}")
    assert "--force" in refused(model, "--json", tmp_path / "there.json")
    assert "is not a folder" in refused(model, "--json", tmp_path / "nowhere" / "x.json")
    assert "does not exist" in refused(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "gptx.json" in refused(model, "--against", f"gptx:{tmp_path / 'empty'}")
    (tmp_path / "text.txt").write_bytes(b"\xff\xff")
    assert "not UTF-8" in refused(model, "--text", tmp_path / "text.txt")


@pytest.mark.skipif("onnxruntime-gpu" in installed_packages(), reason="for the CPU's ONNX Runtime")
def test_cuda_is_asked_for_before_anything_is_measured(artifacts: dict[str, Path]) -> None:
    assert "device 'cuda' needs onnxruntime-gpu" in refused(artifacts["shared"], "--device", "cuda")


def test_quality_of_a_text_needs_fp32(quantized: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat")
    assert "--reference" in refused(quantized["int8"], "--quality", "--text", tmp_path / "text.txt")
    assert "--reference" in refused(quantized["int8"], "--quality", "--tokens", "20")
    assert "is not fp32" in refused(
        quantized["int8"], "--quality", "--reference", quantized["int4"]
    )


def test_a_peer_that_is_not_installed(
    artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "installed", lambda package: None)
    (tmp_path / "x.gguf").write_bytes(b"")
    message = refused(artifacts["shared"], "--against", f"llamacpp:{tmp_path / 'x.gguf'}")
    assert "llama-cpp-python is not installed: pip install llama-cpp-python" in message
    outcome = gptx(
        "bench", artifacts["shared"], "--prompt-tokens", "4", *QUICK
    )  # which needs none of them
    assert outcome.status == 0, outcome.err


def test_a_peer_that_fails(artifacts: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(artifacts["growing"], tmp_path / "broken")
    (broken / "onnx/model.onnx").write_bytes(b"x" * (broken / "onnx/model.onnx").stat().st_size)
    outcome = gptx(
        "bench", artifacts["shared"], "--against", f"gptx:{broken}", "--prompt-tokens", "4", *QUICK
    )
    last = outcome.err.splitlines()[-1]
    assert (
        outcome.status == 1
        and last.startswith("gptx: gptx:broken failed: ")
        and "cannot open it" in last
    )


def test_without_matplotlib(
    artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in refused(artifacts["shared"], "--picture", tmp_path / "x.png")
