"""Tiny GGUF files, written with the gguf package: llamas, GPT-2s, tokenizers of several kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Q
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from builders.raw_gguf import GGUF_NAMES, interleave
from gptx_models.importers import import_checkpoint

transformers = pytest.importorskip("transformers")

SAMPLES = [
    "",
    "The quick brown fox jumps over the lazy dog. "
    "It's what they'll do, isn't it? I'D SAY WE'VE 'RE 'tis",
    "0 1 12 123 1234 12345 123456 3.14159 1,000,000 -7 1e-5 0x1F ½ Ⅷ ٣٤ ²",
    "😀 👩‍👩‍👧‍👦 🇫🇷 🏳️‍🌈 ❤️ naïve café Ünïcödé e\u0301",
    "你好，世界。日本語のテキストです。한국어 문장입니다。ไทย हिन्दी العربية עברית Ελληνικά Привет",
    "def f(x: int) -> str:\n\treturn f'{x!r}'  # comment\n\n\n\r\n\r\n"
    "<html>&amp;</html> a_b __c__ $x += `y`|z^~",
    "  two  spaces   three\t\ttabs \n newline\n\n\nthree \u00a0nbsp\u2003em \u3000wide  ",
    " leading and trailing ",
    "Mixed: HelloWorld helloWorld HTTPServer x86_64 C++ e.g. "
    '(nested [brackets] {braces}) "quotes" --dash—em…',
]


def byte_level_vocabulary(size: int = 600) -> tuple[list[str], list[str]]:
    """Tokens and merges, learned from SAMPLES.

    The texts are not split first, so merges cross the places where a pre-tokenizer would split.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=8,
    )
    tokenizer.train_from_iterator(SAMPLES * 3, trainer)
    content = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].__getitem__)
    return tokens, [" ".join(merge) for merge in content["merges"]]


def write_byte_level(writer: gguf.GGUFWriter, pre: str | None, **ids: int) -> None:
    tokens, merges = byte_level_vocabulary()
    special = ["<|end|>", "<|user|>", "<tool>"]
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([*special, *tokens, "[PAD1]", "[PAD2]"])
    types = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.USER_DEFINED]
    writer.add_token_types(
        [*types, *[gguf.TokenType.NORMAL] * len(tokens), *[gguf.TokenType.UNUSED] * 2]
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)


def write_sentencepiece(writer: gguf.GGUFWriter, *, space_prefix: bool = True) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, max_token_length=8)
    tokenizer.train_from_iterator([sample for sample in SAMPLES if sample.isascii()] * 3, trainer)
    content = json.loads(tokenizer.to_str())["model"]
    learned = sorted(content["vocab"], key=content["vocab"].__getitem__)
    types = gguf.TokenType
    rows = [
        ("<unk>", 0.0, types.UNKNOWN),
        ("<s>", 0.0, types.CONTROL),
        ("</s>", 0.0, types.CONTROL),
    ]
    rows += [(f"<0x{byte:02X}>", 0.0, types.BYTE) for byte in range(256)]
    rows += [(token, -float(rank), types.NORMAL) for rank, token in enumerate(learned)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _, _ in rows])
    writer.add_token_scores([score for _, score, _ in rows])
    writer.add_token_types([kind for _, _, kind in rows])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(space_prefix)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized(value: np.ndarray, kind: Q, rng: np.random.Generator) -> np.ndarray:
    """`value` in a GGML type.

    The package cannot write K types: they get random blocks with small scales.
    """
    if kind not in (Q.Q4_K, Q.Q6_K):
        return gguf.quants.quantize(value, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = rng.integers(0, 256, (*value.shape[:-1], value.shape[-1] // block, size), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.001).tobytes(), np.uint8)
    for start in (0, 2) if kind == Q.Q4_K else (size - 2,):  # d and dmin, or d at the end
        rows[..., start : start + 2] = scale
    return rows.reshape(*value.shape[:-1], -1)


def add(
    writer: gguf.GGUFWriter, name: str, value: np.ndarray, kind: Q, rng: np.random.Generator
) -> None:
    value = np.ascontiguousarray(value, dtype=np.float32)
    if value.ndim == 1 or kind == Q.F32:
        writer.add_tensor(name, value)
    else:
        writer.add_tensor(name, quantized(value, kind, rng), raw_dtype=kind)


def llama(**changes: Any) -> transformers.LlamaForCausalLM:
    shape = dict(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
    )
    return randomized(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **changes}))
    )


def randomized(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


def write_llama(
    path: Path, model: transformers.LlamaForCausalLM, kind: Q = Q.F32, **extra: Any
) -> Path:
    config, state = (
        model.config,
        {name: value.numpy() for name, value in model.state_dict().items()},
    )
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_license("mit")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    for name, value in extra.items():
        getattr(writer, f"add_{name}")(value)
    add(writer, "token_embd.weight", state["model.embed_tokens.weight"], kind, rng)
    add(writer, "output_norm.weight", state["model.norm.weight"], kind, rng)
    if not config.tie_word_embeddings:
        add(writer, "output.weight", state["lm_head.weight"], kind, rng)
    for name, value in state.items():
        if not name.startswith("model.layers."):
            continue
        _, _, layer, *module, leaf = name.split(".")
        theirs = GGUF_NAMES[".".join(module)]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(
            theirs
        )
        add(
            writer,
            f"blk.{layer}.{theirs}.{leaf}",
            interleave(value, heads) if heads else value,
            kind,
            rng,
        )
    finish(writer)
    return path


def write_gpt2(path: Path, model: transformers.GPT2LMHeadModel, *, repeat_head: bool) -> Path:
    config, rng = model.config, np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and not repeat_head:
            continue
        theirs = names.get_name(name.rsplit(".", 1)[0])
        conv1d = name.endswith(".weight") and any(
            part in name for part in ("c_attn", "c_proj", "c_fc")
        )
        add(
            writer,
            f"{theirs}.{name.rsplit('.', 1)[1]}",
            value.numpy().T if conv1d else value.numpy(),
            Q.F32,
            rng,
        )
    finish(writer)
    return path


def tokenizer_only(
    path: Path, write: Callable[[gguf.GGUFWriter], None], *, weights: bool = True
) -> Path:
    """A file to test its tokenizer. Its weights are as few as possible, of width 8."""
    writer = gguf.GGUFWriter(path, "llama")
    write(writer)
    if weights:
        writer.add_context_length(16)
        writer.add_embedding_length(8)
        writer.add_block_count(1)
        writer.add_feed_forward_length(8)
        writer.add_head_count(1)
        writer.add_layer_norm_rms_eps(1e-5)
        shapes = {
            "ffn_gate": (8, 8),
            "ffn_up": (8, 8),
            "ffn_down": (8, 8),
            "attn_norm": (8,),
            "ffn_norm": (8,),
        }
        shapes |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (8, 8))
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.0.{name}.weight", np.ones(shape, np.float32))
        writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
        writer.add_tensor("token_embd.weight", np.ones((1200, 8), np.float32))
    finish(writer)
    return path


IDS = torch.tensor(
    [[3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32], [60, 0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55]]
)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(IDS)
    return out if isinstance(out, torch.Tensor) else out.logits


def imported(source: Path, folder: Path, **options: Any) -> Path:
    return import_checkpoint(str(source), folder / "checkpoint", **options)
