"""Checkpoint folders read and written, against transformers, and errors for damaged folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gptx.errors import CheckpointError
from gptx_models.checkpoints.checkpoint import load_config, load_model, save_checkpoint
from gptx_models.checkpoints.family import family_of
from gptx_models.gpt.config import PRESETS, GPTConfig
from gptx_models.gpt.model import GPT

transformers = pytest.importorskip("transformers")  # the independent reference

VOCAB = 61
IDS = torch.tensor(
    [[3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32], [60, 0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55]]
)
GPT1 = dict(vocab_size=VOCAB, n_positions=24, n_embd=24, n_layer=2, n_head=3)
LLAMA = dict(
    vocab_size=VOCAB,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=32,
    tie_word_embeddings=False,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8,
)


def gpt2(**changes: Any) -> transformers.PreTrainedModel:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT1, **changes}))


def openai(**changes: Any) -> transformers.PreTrainedModel:
    return transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**{**GPT1, **changes}))


def llama(**changes: Any) -> transformers.PreTrainedModel:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **changes}))


def mistral(**changes: Any) -> transformers.PreTrainedModel:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**{**LLAMA, **changes}))


CASES = {
    "gpt2": lambda: gpt2(),
    "gpt2 untied, relu, wide": lambda: gpt2(
        tie_word_embeddings=False, activation_function="relu", n_inner=40
    ),
    "gpt2 exact gelu": lambda: gpt2(activation_function="gelu", layer_norm_epsilon=1e-3),
    "openai-gpt": lambda: openai(),
    "openai-gpt relu, untied": lambda: openai(afn="relu", tie_word_embeddings=False),
    "llama grouped": lambda: llama(num_key_value_heads=2, rms_norm_eps=1e-3),
    "llama one key head, tied": lambda: llama(
        num_key_value_heads=1, tie_word_embeddings=True, rope_theta=100.0
    ),
    "llama biases, wide heads": lambda: llama(
        num_key_value_heads=2, attention_bias=True, mlp_bias=True, head_dim=8
    ),
    "llama rope llama3": lambda: llama(rope_scaling=LLAMA3),
    "llama rope linear": lambda: llama(rope_scaling=dict(type="linear", factor=2.0)),
    "mistral": lambda: mistral(num_key_value_heads=2, sliding_window=None),
}


def randomized(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Weights large enough that a wrong layout shows in the logits; norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(IDS)
    return out if isinstance(out, torch.Tensor) else out.logits


def save(model: GPT, folder: Path, generation: dict[str, Any] | None = None) -> str:
    return save_checkpoint(
        model, folder, tokenizer_files=None, source={"format": "test"}, generation=generation
    )


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_in_both_directions(case: str, tmp_path: Path) -> None:
    reference = randomized(CASES[case]())
    expected = logits(reference)
    assert expected.std() > 0.1
    reference.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    torch.testing.assert_close(logits(ours), expected, atol=1e-4, rtol=0)

    family = save(ours, tmp_path / "ours", {"bos_token_id": 1, "eos_token_id": [2, 3]})
    assert family == case.split()[0].replace("mistral", "llama")
    back, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()), report
    torch.testing.assert_close(logits(back.eval()), expected, atol=1e-4, rtol=0)
    assert back.config.eos_token_id == [2, 3] and back.generation_config.bos_token_id == 1


def test_mistral_window(tmp_path: Path) -> None:
    reference = randomized(
        mistral(num_key_value_heads=2, sliding_window=4, attn_implementation="eager")
    )
    reference.save_pretrained(tmp_path)
    assert load_config(tmp_path).window == 4
    torch.testing.assert_close(logits(load_model(tmp_path)), logits(reference), atol=1e-4, rtol=0)


def test_transformers_5_writes_rope_parameters(tmp_path: Path) -> None:
    reference = randomized(llama(rope_scaling=LLAMA3, rope_theta=500.0))
    reference.save_pretrained(tmp_path)
    edit(
        tmp_path,
        rope_scaling=None,
        rope_theta=None,
        rope_parameters={**LLAMA3, "rope_theta": 500.0},
    )
    torch.testing.assert_close(logits(load_model(tmp_path)), logits(reference), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    reference = randomized(gpt2()).to(dtype)
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(model), logits(reference.float()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "transformer.h.1.mlp.c_fc.weight"
    save_file(
        {**state, name: state[name].to(dtype)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=f"in floating point: {name} is (I8|F8_E4M3)$"):
        load_model(tmp_path)


def test_shards(tmp_path: Path) -> None:
    reference = randomized(llama())
    reference.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    torch.testing.assert_close(logits(load_model(tmp_path)), logits(reference), atol=1e-4, rtol=0)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"missing: {shards[1].name}"):
        load_model(tmp_path)


@pytest.mark.parametrize("build", [gpt2, openai, lambda: llama(tie_word_embeddings=True)])
def test_base_model_without_head_or_prefix(build: Any, tmp_path: Path) -> None:
    reference = randomized(build())
    reference.base_model.save_pretrained(tmp_path)  # as openai-community/gpt2 has it
    torch.testing.assert_close(logits(load_model(tmp_path)), logits(reference), atol=1e-4, rtol=0)


def test_pytorch_bin_is_read_without_running_code(tmp_path: Path) -> None:
    reference = randomized(gpt2())
    reference.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "pytorch_model.bin").exists()
    torch.testing.assert_close(logits(load_model(tmp_path)), logits(reference), atol=1e-4, rtol=0)
    torch.save({"transformer.wte.weight": Path("an object")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="objects beyond tensors"):
        load_model(tmp_path)


def test_absent_biases_become_zeros(tmp_path: Path) -> None:
    config = GPTConfig(
        vocab_size=VOCAB,
        n_ctx=24,
        n_layer=2,
        n_head=3,
        n_embd=24,
        attn_bias=False,
        mlp_bias=False,
        norm_bias=False,
    )
    model = GPT(config).eval()
    assert save(model, tmp_path) == "gpt2"
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(back), logits(model), atol=1e-4, rtol=0)


def test_presets_are_written_as_the_family_that_computes_them() -> None:
    families = {name: family_of(config) for name, config in PRESETS.items()}
    assert families["gpt1"] == "openai-gpt" and families["llama-style"] == "llama"
    assert {
        families[name] for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "nano")
    } == {"gpt2"}
    assert families["gpt3-style"] == "gptx"


CONFIGS = st.builds(
    GPTConfig,
    vocab_size=st.just(VOCAB),
    n_ctx=st.just(16),
    n_layer=st.just(2),
    n_head=st.just(4),
    n_embd=st.just(16),
    n_kv_head=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([4, 6]),
    n_inner=st.sampled_from([20, 64]),
    position=st.sampled_from(["learned", "sinusoidal", "rope", "none"]),
    rope_scaling=st.sampled_from([None, {"rope_type": "linear", "factor": 2.0}]),
    attention=st.sampled_from(["dot", "cosine", ("dot", "additive")]),
    window=st.sampled_from([None, 4, (None, 5)]),
    activation=st.sampled_from(["relu", "gelu", "gelu_tanh", "swiglu"]),
    norm=st.sampled_from(["layernorm", "rmsnorm"]),
    norm_position=st.sampled_from(["pre", "post"]),
    norm_eps=st.sampled_from([1e-5, 1e-3]),
    attn_bias=st.booleans(),
    mlp_bias=st.booleans(),
    norm_bias=st.booleans(),
    head_bias=st.booleans(),
    tied=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(config=CONFIGS)
def test_whatever_is_saved_is_loaded_again(
    config: GPTConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch.manual_seed(0)
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("saved")
    family = save(model, folder)
    assert family == json.loads((folder / "config.json").read_text())["model_type"]
    loaded = load_model(folder)
    assert (
        not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
        and not loaded.training
    )
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)
    if family == "gptx":
        assert loaded.config == config


@pytest.mark.parametrize(
    "build, changes, said",
    [
        (
            gpt2,
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx is True",
        ),
        (gpt2, {"scale_attn_weights": False}, "scale_attn_weights is False"),
        (gpt2, {"add_cross_attention": True}, "add_cross_attention is True"),
        (
            gpt2,
            {"activation_function": "quick_gelu"},
            "activation_function is 'quick_gelu', expected one of gelu_new",
        ),
        (openai, {"afn": "swish"}, "afn is 'swish'"),
        (llama, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (
            llama,
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling is of type 'dynamic'",
        ),
        (
            llama,
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
            "lacks low_freq_factor, high_freq_factor",
        ),
        (llama, {"rope_scaling": "yes"}, "rope_scaling is 'yes', expected an object"),
        (llama, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (llama, {"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        (
            llama,
            {"hidden_size": None, "vocab_size": None},
            "vocab_size is missing; the field hidden_size is missing",
        ),
        (llama, {"num_key_value_heads": 3}, r"n_head \(4\) is not a multiple of n_kv_head \(3\)"),
        (
            llama,
            {"num_hidden_layers": "two"},
            "num_hidden_layers is 'two', expected a positive whole number",
        ),
        (
            llama,
            {"model_type": "qwen2"},
            "'qwen2', which gptx's own GPT does not cover .*llama.*--via optimum",
        ),
        (llama, {"model_type": None}, "model_type is None"),
        (
            llama,
            {"intermediate_size": 48},
            r"gate_proj.weight is \[40, 24\] where the configuration says \[48, 24\]",
        ),
        (
            llama,
            {"attention_bias": True},
            "missing tensors: .*layers.0.self_attn.q_proj.bias.*layers.1.self_attn.o_proj",
        ),
        (
            llama,
            {"num_hidden_layers": 1},
            "unexpected tensors: model.layers.1.input_layernorm.weight.*v_proj.weight",
        ),
    ],
)
def test_what_the_gpt_does_not_compute_is_refused(
    build: Any, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    build().save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def lfs(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "name, damage, said",
    [
        ("model.safetensors", lfs, "Git LFS pointer.*git lfs pull"),
        ("model.safetensors", cut, "not a whole safetensors file"),
        ("model.safetensors", lambda p: p.write_bytes(b"x" * 7), "not a whole safetensors file"),
        ("model.safetensors", lambda p: p.write_bytes(b""), "is empty"),
        ("model.safetensors", Path.unlink, "holds no weights: expected model.safetensors"),
        ("config.json", cut, "is not JSON"),
        ("config.json", lfs, "Git LFS pointer"),
        ("config.json", lambda p: p.write_text("[]"), "holds a JSON list, expected an object"),
        ("config.json", Path.unlink, "has no config.json"),
    ],
)
def test_damaged_folders(name: str, damage: Any, said: str, tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_places(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_config(tmp_path / "nowhere")
    (tmp_path / "gptx.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is an ONNX artifact.*gptx run -m"):
        load_config(tmp_path)


def test_unknown_fields_of_a_gptx_config_are_named(tmp_path: Path) -> None:
    save(GPT(GPTConfig(VOCAB, 16, 1, 2, 8, head_bias=True)), tmp_path)
    edit(tmp_path, n_expert=8)
    with pytest.raises(CheckpointError, match="unknown fields n_expert"):
        load_config(tmp_path)
