"""The fields of config.json that change what is computed.

Each is obeyed as transformers obeys it, or refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gptx.errors import CheckpointError
from gptx_models.checkpoints.checkpoint import load_config, load_model
from gptx_models.checkpoints.read_config import read_config
from gptx_models.gpt.config import GPTConfig
from gptx_models.importers import import_checkpoint

transformers = pytest.importorskip("transformers")  # the independent reference

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32]])
GPT2 = dict(vocab_size=61, n_positions=24, n_embd=24, n_layer=2, n_head=4)
LLAMA = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=8,
    max_position_embeddings=32,
)
CLASSES = {
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, GPT2),
    "openai-gpt": (transformers.OpenAIGPTConfig, transformers.OpenAIGPTLMHeadModel, GPT2),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, LLAMA),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, LLAMA),
}


def written(folder: Path, family: str, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    """A saved transformers model, with fields of its config.json dropped or changed."""
    config, model, shape = CLASSES[family]
    torch.manual_seed(0)
    made = model(config(**{**shape, **changes}))
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    made.save_pretrained(folder)
    edit(folder, drop, **changes)
    return folder


def edit(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if name not in drop}))


def theirs(folder: Path) -> torch.Tensor:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    with torch.no_grad():
        return model.eval()(IDS).logits


def ours(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder)(IDS)


# --- obeyed ---------------------------------------------------------------------------------------

LLAMA3 = dict(
    factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8
)
OBEYED: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("gpt2", (), {"activation_function": "gelu_fast"}),
    ("gpt2", (), {"activation_function": "gelu_python"}),
    ("gpt2", (), {"reorder_and_upcast_attn": True}),
    ("gpt2", (), {"scale_attn_by_inverse_layer_idx": None}),
    ("gpt2", ("tie_word_embeddings", "layer_norm_epsilon", "activation_function", "n_inner"), {}),
    ("openai-gpt", ("tie_word_embeddings", "layer_norm_epsilon", "afn"), {}),
    (
        "llama",
        (
            "tie_word_embeddings",
            "rms_norm_eps",
            "rope_theta",
            "num_key_value_heads",
            "hidden_act",
            "head_dim",
        ),
        {},
    ),
    ("llama", (), {"head_dim": None, "num_key_value_heads": None}),
    ("llama", (), {"rope_scaling": {"rope_type": "linear", "factor": 0.5}}),
    ("llama", (), {"rope_scaling": {"rope_type": "default", "factor": 8.0}}),
    ("llama", (), {"rope_scaling": {"type": "llama3", **LLAMA3}}),
    (
        "llama",
        (),
        {
            "rope_theta": 7,
            "rms_norm_eps": 1,
            "pretraining_tp": 2,
            "use_cache": False,
            "is_decoder": True,
        },
    ),
    ("llama", (), {"layer_types": ["full_attention"] * 2, "sliding_window": None}),
    # Mistral's defaults: 8 key and value heads, a window of 4096. A null window means none.
    (
        "mistral",
        ("num_key_value_heads", "tie_word_embeddings", "rms_norm_eps", "rope_theta", "hidden_act"),
        {},
    ),
    ("mistral", (), {"num_key_value_heads": 2, "sliding_window": 3, "head_dim": 4}),
    ("mistral", (), {"num_key_value_heads": None, "sliding_window": None}),
    (
        "mistral",
        (),
        {
            "num_key_value_heads": 2,
            "sliding_window": 3,
            "head_dim": 4,
            "layer_types": ["full_attention"] * 2,
        },
    ),
    (
        "mistral",
        (),
        {
            "num_key_value_heads": 2,
            "sliding_window": 3,
            "head_dim": 4,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    ("mistral", (), {"num_key_value_heads": 4, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
]


@pytest.mark.parametrize(("family", "drop", "changes"), OBEYED)
def test_obeyed_as_transformers_does(
    family: str, drop: tuple[str, ...], changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = written(tmp_path, family, drop, **changes)
    torch.testing.assert_close(ours(folder), theirs(folder), atol=2e-5, rtol=1e-4)


def test_mistral_without_its_fields_has_its_classs_defaults(tmp_path: Path) -> None:
    written(tmp_path, "mistral", ("sliding_window", "max_position_embeddings"))
    expected = transformers.AutoConfig.from_pretrained(tmp_path)
    config = load_config(tmp_path)
    assert (
        (config.n_ctx, config.window)
        == (expected.max_position_embeddings, expected.sliding_window)
        == (131072, 4096)
    )
    edit(tmp_path, sliding_window=None)
    assert load_config(tmp_path).window is None
    edit(tmp_path, sliding_window=131072)  # nothing is outside it
    assert load_config(tmp_path).window is None


def test_gpt2_under_the_newer_names(tmp_path: Path) -> None:
    folder = written(tmp_path, "gpt2", tuple(GPT2)[1:])
    edit(
        folder,
        max_position_embeddings=24,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    torch.testing.assert_close(ours(folder), theirs(folder), atol=2e-5, rtol=1e-4)
    edit(folder, n_layer=3)
    with pytest.raises(
        CheckpointError,
        match="n_layer is 3 and num_hidden_layers is 2: two names of one field",
    ):
        load_config(folder)


def test_rope_of_transformers_5(tmp_path: Path) -> None:
    folder = written(
        tmp_path, "llama", rope_theta=500.0, rope_scaling={"rope_type": "linear", "factor": 2.0}
    )
    expected = ours(folder)
    edit(folder, ("rope_theta", "rope_scaling"),
         rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0})  # fmt: skip
    assert torch.equal(ours(folder), expected)
    edit(folder, rope_parameters={"rope_theta": 500.0})
    assert load_config(folder).rope_scaling is None and load_config(folder).rope_theta == 500.0


# --- refused --------------------------------------------------------------------------------------

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *[(family, {"is_causal": False}, "is_causal is False") for family in CLASSES],
    *[(family, {"pruned_heads": {"0": [1]}}, "pruned_heads is") for family in CLASSES],
    *[
        (family, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True")
        for family in CLASSES
    ],
    *[
        ("llama", {name: 0.5}, f"{name} is 0.5, which gptx's GPT does not compute")
        for name in (
            "attention_multiplier",
            "logits_scaling",
            "residual_multiplier",
            "embedding_multiplier",
            "partial_rotary_factor",
            "final_logit_softcapping",
            "attn_logit_softcapping",
            "query_pre_attn_scalar",
            "logit_scale",
            "scale_emb",
        )
    ],
    ("llama", {"num_local_experts": 8}, "num_local_experts is 8"),
    ("mistral", {"num_local_experts": 8}, "num_local_experts is 8"),
    ("llama", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("llama", {"sliding_window": 4}, "sliding_window is 4, which a llama does not have"),
    ("gpt2", {"sliding_window": 4}, "sliding_window is 4"),
    # transformers does not scale then
    ("gpt2", {"scale_attn_weights": None}, "scale_attn_weights is None"),
    ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
    (
        "mistral",
        {"sliding_window": None, "layer_types": ["sliding_attention"] * 2},
        "layer_types is",
    ),
    (
        "mistral",
        {"sliding_window": 4, "layer_types": ["sliding_attention"]},
        "layer_types names 1 layers of 2",
    ),
    ("mistral", {"sliding_window": 4, "layer_types": ["chunked_attention"] * 2}, "layer_types is"),
    ("llama", {"layer_types": "full_attention"}, "layer_types is"),
    ("mistral", {"sliding_window": 0}, "sliding_window is 0, expected a positive whole number"),
    ("mistral", {"sliding_window": -1}, "sliding_window is -1, expected a positive whole number"),
    ("mistral", {"attention_bias": True}, "attention_bias is True"),
    ("llama", {"attention_chunk_size": 8}, "attention_chunk_size is 8"),
    ("llama", {"no_rope_layers": [1, 0]}, "no_rope_layers is"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved is True"),
    ("llama", {"quantization": {"bits": 4}}, "the weights are quantized \\(quantization\\)"),
    (
        "llama",
        {"compression_config": {"bits": 4}},
        "the weights are quantized \\(compression_config\\)",
    ),
    *[
        (
            "llama",
            {"rope_scaling": {"rope_type": kind, "factor": 2.0}},
            f"rope_scaling is of type '{kind}'",
        )
        for kind in ("yarn", "dynamic", "longrope", "su", "mrope")
    ],
    *[
        (
            "llama",
            {"rope_scaling": {"rope_type": "linear", "factor": factor}},
            "rope_scaling's factor is .*above 0",
        )
        for factor in (0, -2.0, float("nan"), float("inf"), "2", True, [2.0], 10**400)
    ],
    ("llama", {"rope_scaling": {"factor": 2.0}}, "rope_scaling is of type None"),
    (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 2.0}},
        "names two types",
    ),
    (
        "llama",
        {"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}},
        "is of type \\['linear'\\]",
    ),
    (
        "llama",
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}},
        "low_freq_factor is 4.0, exp",
    ),
    (
        "llama",
        {"rope_parameters": {"full_attention": {"rope_type": "linear"}}},
        "rope_scaling is of type None",
    ),
    (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}, "rope_theta": 6.0},
        "rope_theta is 6.0,",
    ),
    (
        "llama",
        {"rope_scaling": {"rope_type": "default", "rope_theta": 5.0}},
        "rope_theta is 10000.0, and 5.0",
    ),
    (
        "llama",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "partial_rotary_factor is 0.5",
    ),
    *[
        ("llama", {"rope_theta": theta}, "rope_theta is .*above 0")
        for theta in (0, -1.0, float("nan"), "1e4", 10**400)
    ],
    *[
        ("llama", {"rms_norm_eps": eps}, "rms_norm_eps is .*at least 0")
        for eps in (-1e-6, float("inf"), "1e-6", True)
    ],
    *[
        ("llama", {"num_hidden_layers": n}, "num_hidden_layers is .*whole number")
        for n in ("2", 2.0, True, [2], 0, -1)
    ],
    ("llama", {"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    ("llama", {"num_attention_heads": 0}, "num_attention_heads is 0"),
    ("llama", {"head_dim": 0}, "head_dim is 0"),
    ("gpt2", {"n_inner": 0}, "n_inner is 0"),
    (
        "llama",
        {"tie_word_embeddings": "false"},
        "tie_word_embeddings is 'false', expected true or false",
    ),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or false"),
    ("llama", {"model_type": ["llama"]}, "model_type is \\['llama'\\]"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        family: written(tmp_path_factory.mktemp("written") / family, family) for family in CLASSES
    }


@pytest.mark.parametrize(("family", "changes", "says"), REFUSED)
def test_refused_by_name(
    family: str, changes: dict[str, Any], says: str, folders: dict[str, Path]
) -> None:
    raw = {**json.loads((folders[family] / "config.json").read_text()), **changes}
    with pytest.raises(CheckpointError, match=f"^here: .*{says}") as caught:
        read_config(raw, "here")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


# Fields of transformers' class that change no logit: dropout, initialization, caching, training,
# heads for other tasks, and generation settings that old files keep here.
HARMLESS = {
    "initializer_range", "use_cache", "pretraining_tp", "attn_pdrop", "embd_pdrop",
    "reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "bos_token_id", "eos_token_id",
    "pad_token_id", "id2label", "label2id", "num_labels", "problem_type", "architectures", "dtype",
    "torch_dtype", "use_bfloat16", "torchscript", "return_dict", "output_hidden_states",
    "output_attentions", "chunk_size_feed_forward", "is_decoder", "cross_attention_hidden_size",
    "tie_encoder_decoder", "finetuning_task", "task_specific_params", "tokenizer_class", "prefix",
    "sep_token_id", "decoder_start_token_id", "tf_legacy_loss", "_name_or_path",
    "transformers_version", "model_type", "use_return_dict",
}  # fmt: skip
READ = {
    "gpt2": {
        "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner",
        "activation_function", "resid_pdrop", "layer_norm_epsilon", "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx", "tie_word_embeddings",
    },
    "openai-gpt": {
        "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "afn", "resid_pdrop",
        "layer_norm_epsilon", "tie_word_embeddings",
    },
    "llama": {
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "head_dim", "num_key_value_heads", "hidden_act",
        "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "attention_bias",
        "mlp_bias", "attention_dropout", "tie_word_embeddings",
    },
}  # fmt: skip
READ["mistral"] = READ["llama"] - {"attention_bias", "mlp_bias", "rope_scaling"} | {
    "sliding_window"
}
REFUSED_ALWAYS = {"is_encoder_decoder", "add_cross_attention", "pruned_heads"}


@pytest.mark.parametrize("family", CLASSES)
def test_no_field_of_transformers_class_is_overlooked(family: str) -> None:
    config = CLASSES[family][0]()
    generation = set(transformers.GenerationConfig().to_dict())
    fields = {name for name in config.to_dict() if name not in generation}
    assert fields - HARMLESS - REFUSED_ALWAYS == READ[family]


# --- absurd numbers -------------------------------------------------------------------------------

ABSURD = [
    ("num_hidden_layers", 10**7),
    ("hidden_size", 2**64),
    ("vocab_size", 10**12),
    ("num_attention_heads", 2**63),
    ("intermediate_size", 10**30),
    ("max_position_embeddings", 10**9),
    ("num_key_value_heads", 10**1000),
    ("head_dim", 2**31),
]


@pytest.mark.parametrize(("name", "value"), ABSURD)
def test_absurd_sizes(name: str, value: int, folders: dict[str, Path]) -> None:
    raw = {**json.loads((folders["llama"] / "config.json").read_text()), name: value}
    with pytest.raises(CheckpointError, match=f"{name} is .*expected at most"):
        read_config(raw, "here")


def test_sizes_that_the_file_does_not_have_allocate_nothing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Sizes that are allowed one by one but make terabytes together.

    The shapes in the file refuse them before a model is allocated.
    """
    folder = tmp_path / "model"
    written(folder, "llama")
    for changes in (
        {"vocab_size": 2**24, "hidden_size": 2**22, "intermediate_size": 2**24},
        {"num_hidden_layers": 9_999},
    ):
        edit(folder, **{**LLAMA, **changes})
        with pytest.raises(
            CheckpointError, match="do not fit the configuration|of 9,?999 layers"
        ) as caught:
            import_checkpoint(str(folder), tmp_path / "out")
        assert len(str(caught.value)) < 3000 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_layer": True}, "n_layer is True, expected a positive whole number"),
        ({"n_embd": 2**64}, "n_embd is 18446744073709551616, expected at most 16,777,216"),
        (
            {"n_ctx": 2**24, "position": "rope", "head_dim": 128},
            "n_ctx is 16,777,216, and the tables of its positions",
        ),
        ({"n_head": 2**20, "head_dim": 2**20}, "n_head times head_dim is"),
        ({"position": ["rope"]}, r"position is \['rope'\], expected one of"),
        ({"attention": [["dot"], "dot"]}, r"attention is \['dot'\], expected one of"),
        ({"window": [None, True]}, "window is True, expected"),
        ({"window": [4]}, "window names 1 layers of 2"),
        ({"norm_eps": float("nan")}, "norm_eps is nan, expected a number of at least 0"),
        ({"rope_theta": "x"}, "rope_theta is 'x', expected a number above 0"),
        ({"tied": "yes"}, "tied is 'yes', expected true or false"),
        ({"dropout": 2}, "dropout is 2, expected a number of at least 0 and at most 1"),
        ({"n_class": 1.0}, "n_class is 1.0, expected a whole number"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\], expected an object"),
    ],
)
def test_fields_of_a_gptx_config(changes: dict[str, Any], says: str) -> None:
    raw = {"model_type": "gptx", **GPTConfig(64, 16, 2, 2, 16).to_dict(), "head_dim": 8, **changes}
    with pytest.raises(CheckpointError, match=f"^here: .*{says}"):
        read_config(raw, "here")
