"""precision = "auto" is bf16 where the CPU has instructions for it, else fp32."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT
from gptx_models.training import precision
from gptx_models.training.optimizer import optimizers_of
from gptx_models.training.recipe import Recipe, read_recipe
from gptx_models.training.train import train

CPU = torch.device("cpu")
RECIPE = Recipe(
    model={"n_layer": 1, "n_head": 1, "n_embd": 16, "n_ctx": 16},
    steps=2,
    vocab_size=300,
    batch_size=2,
    optimizer="muon",
)


@pytest.mark.parametrize(
    ("features", "resolved"),
    [
        (["avx2", "fma"], "fp32"),
        (["avx2", "avx512", "avx512_vnni"], "fp32"),
        (["avx2", "avx512", "avx512_bf16"], "bf16"),
        (["avx512", "amx_bf16"], "bf16"),
        (["neon", "dotprod"], "fp32"),
        (["neon", "bf16"], "bf16"),
    ],
)
def test_auto_is_what_the_cpu_is_fast_in(
    features: list[str], resolved: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(precision, "cpu_features", lambda: features)
    assert RECIPE.precision == "auto"
    assert precision.resolve_precision(RECIPE, CPU).precision == resolved
    muon = optimizers_of(GPT(GPTConfig.from_dict({**RECIPE.model, "vocab_size": 300})), RECIPE)[0]
    assert muon.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[resolved]


@pytest.mark.parametrize("asked", ["fp32", "bf16", "fp16"])
def test_a_precision_that_is_asked_for_stays(asked: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "cpu_features", lambda: ["avx512_bf16"])
    recipe = dataclasses.replace(RECIPE, precision=asked)
    assert precision.resolve_precision(recipe, CPU) == recipe


@pytest.mark.parametrize(("features", "used"), [(["avx2"], "fp32"), (["avx512_bf16"], "bf16")])
def test_a_checkpoint_says_which_precision_it_was(
    features: list[str], used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(precision, "cpu_features", lambda: features)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a king who had a daughter. " * 40)
    train([text], tmp_path / "out", RECIPE)
    assert read_recipe(str(tmp_path / "out/recipe.toml")).precision == used
    source = json.loads((tmp_path / "out/gptx_source.json").read_text())
    assert source["recipe"]["precision"] == used
