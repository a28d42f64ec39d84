"""optimum-onnx and onnxruntime-genai load the same folder and give the same tokens as gptx."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import gptx
from builders.exported import CONFIG, write_checkpoint
from builders.gptx_command import gptx as command
from gpt_export.export import export_checkpoint
from gpt_export.quantization.quantize import quantize_artifact
from gptx.ort import native

# no padding ids at the end of the vocabulary: gptx never picks them, other loaders do
GPT2 = dataclasses.replace(CONFIG, vocab_size=277)
LLAMA = dataclasses.replace(
    GPT2,
    n_kv_head=2,
    position="rope",
    activation="swiglu",
    norm="rmsnorm",
    attn_bias=False,
    mlp_bias=False,
)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40, 41], [100, 3, 80, 220, 17]]


FORMS = ["gpt2-shared", "llama-growing", "llama-int4", "llama-fp16"]
MORE_FORMS = ["gpt2-growing", "llama-shared", "llama-int8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loaders")


@pytest.fixture(
    scope="module",
    params=[*FORMS, *(pytest.param(form, marks=pytest.mark.wide) for form in MORE_FORMS)],
)
def artifact(request: pytest.FixtureRequest, folder: Path) -> Path:
    kind, form = request.param.split("-")
    checkpoint, shared, out = (folder / f"{kind}-{name}" for name in ("checkpoint", "shared", form))
    if not checkpoint.exists():
        write_checkpoint(checkpoint, GPT2 if kind == "gpt2" else LLAMA)
        export_checkpoint(checkpoint, shared)
    if form == "growing":
        export_checkpoint(checkpoint, out, cache="growing")
    elif form != "shared":
        quantize_artifact(shared, out, to=form, accept=True)
    return out


def greedy(artifact: Path) -> list[list[int]]:
    """gptx's tokens on model.onnx: other operators may choose another token of two near ones."""
    with native.onnx_runtime_only():
        loaded = gptx.load(artifact)
    with loaded as model:
        return [
            model.generate(prompt, max_new_tokens=12, min_new_tokens=12).token_ids
            for prompt in PROMPTS
        ]


def test_optimum_gives_the_same_tokens_left_padded_too(artifact: Path) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(artifact)
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    together = model.generate(input_ids=ids, attention_mask=mask, **options)[:, longest:].tolist()
    alone = [
        model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            **options,
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]
    assert together == alone == greedy(artifact)


def test_genai_gives_the_same_tokens(artifact: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="pip install '.[interop]'")
    model = genai.Model(str(artifact))
    got = []
    for prompt in PROMPTS:
        parameters = genai.GeneratorParams(model)
        length = len(prompt) + 12
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        got.append([int(token) for token in generator.get_sequence(0)][len(prompt) :])
    assert got == greedy(artifact)


def test_a_model_that_our_gpt_does_not_cover(tmp_path: Path) -> None:
    """--via optimum: a tiny random Qwen2 is exported, certified, run, and quantized."""
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(2)
    reference = transformers.Qwen2ForCausalLM(config).eval()
    reference.save_pretrained(tmp_path / "qwen")
    outcome = command("export", tmp_path / "qwen", tmp_path / "artifact", "--via", "optimum")
    assert outcome.status == 0, outcome.err
    manifest = json.loads((tmp_path / "artifact" / "gptx.json").read_text())
    assert manifest["certificate"]["passed"] and manifest["cache"] == "growing"
    expected = reference.generate(
        torch.tensor([PROMPTS[0]]),
        max_new_tokens=10,
        min_new_tokens=10,
        do_sample=False,
        pad_token_id=0,
    )
    with gptx.load(tmp_path / "artifact") as model:
        got = model.generate(PROMPTS[0], max_new_tokens=10, min_new_tokens=10).token_ids
    assert got == expected[0, len(PROMPTS[0]) :].tolist()
    outcome = command(
        "quantize", tmp_path / "artifact", tmp_path / "int8", "--to", "int8", "--accept"
    )
    assert outcome.status == 0, outcome.err
    size = {
        name: sum(p.stat().st_size for p in (tmp_path / name / "onnx").iterdir())
        for name in ("artifact", "int8")
    }
    assert size["int8"] < 0.7 * size["artifact"]
