"""GGUF files: weights against transformers and llama.cpp's own dequantization, token ids against llama.cpp."""

from __future__ import annotations

import ctypes
import json
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Q
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from gptx.errors import CheckpointError
from gptx_models.checkpoints.checkpoint import load_config, load_model
from gptx_models.importers import import_checkpoint
from gptx_models.importers.gguf_tokenizer import PRE_TOKENIZERS

transformers = pytest.importorskip("transformers")  # the independent reference

SAMPLES = [
    "",
    "The quick brown fox jumps over the lazy dog. It's what they'll do, isn't it? I'D SAY WE'VE 'RE 'tis",
    "0 1 12 123 1234 12345 123456 3.14159 1,000,000 -7 1e-5 0x1F ½ Ⅷ ٣٤ ²",
    "😀 👩‍👩‍👧‍👦 🇫🇷 🏳️‍🌈 ❤️ naïve café Ünïcödé e\u0301",
    "你好，世界。日本語のテキストです。한국어 문장입니다。ไทย हिन्दी العربية עברית Ελληνικά Привет",
    "def f(x: int) -> str:\n\treturn f'{x!r}'  # comment\n\n\n\r\n\r\n<html>&amp;</html> a_b __c__ $x += `y`|z^~",
    "  two  spaces   three\t\ttabs \n newline\n\n\nthree \u00a0nbsp\u2003em \u3000wide  ",
    " leading and trailing ",
    'Mixed: HelloWorld helloWorld HTTPServer x86_64 C++ e.g. (nested [brackets] {braces}) "quotes" --dash—em…',
]


# --- writing tiny files --------------------------------------------------------------------------------------------


def byte_level_vocabulary(size: int = 600) -> tuple[list[str], list[str]]:
    """(tokens, merges) learned from SAMPLES uncut, so that merges cross whatever a pre-tokenizer would cut."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), max_token_length=8
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
    writer.add_token_types([*types, *[gguf.TokenType.NORMAL] * len(tokens), *[gguf.TokenType.UNUSED] * 2])
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
    rows = [("<unk>", 0.0, types.UNKNOWN), ("<s>", 0.0, types.CONTROL), ("</s>", 0.0, types.CONTROL)]
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
    """`value` in a GGML type; K types, which the package cannot write, get random blocks with small scales."""
    if kind not in (Q.Q4_K, Q.Q6_K):
        return gguf.quants.quantize(value, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = rng.integers(0, 256, (*value.shape[:-1], value.shape[-1] // block, size), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.001).tobytes(), np.uint8)
    for start in (0, 2) if kind == Q.Q4_K else (size - 2,):  # d and dmin, or d at the end
        rows[..., start : start + 2] = scale
    return rows.reshape(*value.shape[:-1], -1)


def add(writer: gguf.GGUFWriter, name: str, value: np.ndarray, kind: Q, rng: np.random.Generator) -> None:
    value = np.ascontiguousarray(value, dtype=np.float32)
    if value.ndim == 1 or kind == Q.F32:
        writer.add_tensor(name, value)
    else:
        writer.add_tensor(name, quantized(value, kind, rng), raw_dtype=kind)


def interleave(weight: np.ndarray, n_head: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of Q and K."""
    return (
        weight.reshape(n_head, 2, weight.shape[0] // n_head // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


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
    return randomized(transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **changes})))


def randomized(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


def write_llama(path: Path, model: transformers.LlamaForCausalLM, kind: Q = Q.F32, **extra: Any) -> Path:
    config, state = model.config, {name: value.numpy() for name, value in model.state_dict().items()}
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
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, value in state.items():
        if not name.startswith("model.layers."):
            continue
        _, _, layer, *module, leaf = name.split(".")
        theirs = names[".".join(module)]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(theirs)
        add(writer, f"blk.{layer}.{theirs}.{leaf}", interleave(value, heads) if heads else value, kind, rng)
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
        conv1d = name.endswith(".weight") and any(part in name for part in ("c_attn", "c_proj", "c_fc"))
        add(writer, f"{theirs}.{name.rsplit('.', 1)[1]}", value.numpy().T if conv1d else value.numpy(), Q.F32, rng)
    finish(writer)
    return path


def tokenizer_only(path: Path, write: Callable[[gguf.GGUFWriter], None], *, weights: bool = True) -> Path:
    """A file for its tokenizer's sake: weights of width 8, as few as there can be."""
    writer = gguf.GGUFWriter(path, "llama")
    write(writer)
    if weights:
        writer.add_context_length(16)
        writer.add_embedding_length(8)
        writer.add_block_count(1)
        writer.add_feed_forward_length(8)
        writer.add_head_count(1)
        writer.add_layer_norm_rms_eps(1e-5)
        shapes = {"ffn_gate": (8, 8), "ffn_up": (8, 8), "ffn_down": (8, 8), "attn_norm": (8,), "ffn_norm": (8,)}
        shapes |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (8, 8))
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.0.{name}.weight", np.ones(shape, np.float32))
        writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
        writer.add_tensor("token_embd.weight", np.ones((1200, 8), np.float32))
    finish(writer)
    return path


IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32], [60, 0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(IDS)
    return out if isinstance(out, torch.Tensor) else out.logits


def imported(source: Path, folder: Path, **options: Any) -> Path:
    return import_checkpoint(str(source), folder / "checkpoint", **options)


# --- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q4_K, Q.Q6_K], ids=lambda kind: kind.name
)
def test_every_type_of_tensor_as_transformers_reads_it(kind: Q, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", llama(tie_word_embeddings=False), kind)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    folder = imported(path, tmp_path)
    torch.testing.assert_close(logits(load_model(folder)), logits(reference.eval()), atol=1e-4, rtol=0)
    about = json.loads((folder / "gptx_source.json").read_text())
    assert about["format"] == "gguf" and about["licence"] == "mit" and about["sha256"].keys() == {path.name}
    assert about["tensor_types"]["model.layers.0.self_attn.k_proj.weight"] == kind.name
    assert about["tensor_types"]["lm_head.weight"] == kind.name
    assert about["tensor_types"]["model.norm.weight"] == "F32"


@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q4_K, Q.Q6_K], ids=lambda kind: kind.name)
def test_dequantization_equals_llama_cpp(kind: Q, tmp_path: Path) -> None:
    library = Path(pytest.importorskip("llama_cpp").__file__).parent / "lib"
    found = sorted(library.glob("*ggml-base*"))
    if not found:
        pytest.skip("llama-cpp-python came without libggml-base")
    rng = np.random.default_rng(1)
    raw = np.ascontiguousarray(quantized(rng.standard_normal((4, 512), dtype=np.float32), kind, rng))
    ours = gguf.dequantize(raw, kind)
    theirs = np.empty_like(ours)
    function = getattr(ctypes.CDLL(str(found[0])), f"dequantize_row_{kind.name.replace('Q', 'q', 1)}")
    function(raw.ctypes.data_as(ctypes.c_void_p), theirs.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(theirs.size))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        dict(tie_word_embeddings=True),
        dict(tie_word_embeddings=False, num_hidden_layers=2, rope_theta=1e5, num_key_value_heads=1),
        dict(attention_bias=True, mlp_bias=True),
        dict(
            rope_scaling=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
            rope_theta=5e5,
        ),
    ],
    ids=["tied", "untied", "biases", "llama3 rope"],
)
def test_llama_equals_the_model_it_was_written_from(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = llama(**changes)
    path = write_llama(tmp_path / "tiny.gguf", reference)
    if "rope_scaling" in changes:
        path = with_rope_factors(path, reference)
    folder = imported(path, tmp_path)
    assert load_config(folder).tied == reference.config.tie_word_embeddings
    torch.testing.assert_close(logits(load_model(folder)), logits(reference), atol=1e-4, rtol=0)


def with_rope_factors(path: Path, model: transformers.LlamaForCausalLM) -> Path:
    """llama.cpp's converter stores Llama 3.1's scaling as the factor of each frequency, in rope_freqs.weight."""
    plain = model.config.rope_theta ** (-np.arange(0, model.config.head_dim, 2) / model.config.head_dim)
    factors = plain / model.model.rotary_emb.inv_freq.numpy()
    assert factors.max() > 7
    reader, out = gguf.GGUFReader(path), path.with_name("scaled.gguf")
    writer = gguf.GGUFWriter(out, "llama")
    for name, field in reader.fields.items():
        if name.startswith("llama."):
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    finish(writer)
    return out


@pytest.mark.parametrize("repeat_head", [False, True])
def test_gpt2(repeat_head: bool, tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    reference = randomized(transformers.GPT2LMHeadModel(config))
    path = write_gpt2(tmp_path / "tiny.gguf", reference, repeat_head=repeat_head)
    folder = imported(path, tmp_path)
    assert load_config(folder).tied
    torch.testing.assert_close(logits(load_model(folder)), logits(reference), atol=1e-4, rtol=0)


# --- tokenizers ----------------------------------------------------------------------------------------------------


def llama_cpp_vocabulary(path: Path) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def same_ids(folder: Path, reference: Any, texts: list[str], *, add_bos: bool = False) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in texts:
        ours = tokenizer.encode(text, add_special_tokens=add_bos).ids
        theirs = reference.tokenize(text.encode(), add_bos=add_bos, special=True)
        assert ours == theirs, text


@pytest.mark.parametrize("pre", [*PRE_TOKENIZERS, None])
def test_token_ids_of_each_pre_tokenizer_equal_llama_cpp(pre: str | None, tmp_path: Path) -> None:
    path = tokenizer_only(tmp_path / "tiny.gguf", lambda writer: write_byte_level(writer, pre))
    said: list[str] = []
    folder = imported(path, tmp_path, tell=said.append)
    assert any("names no pre-tokenizer" in line for line in said) == (pre is None)
    reference = llama_cpp_vocabulary(path)
    # llama.cpp writes tekken's cut without combining marks; ours is the one of the model's own tokenizer.json
    marks = [text for text in SAMPLES if any(unicodedata.category(character)[0] == "M" for character in text)]
    same_ids(folder, reference, [text for text in SAMPLES if pre != "tekken" or text not in marks])
    same_ids(folder, reference, ["<|user|>hi<|end|> <tool>1</tool><|user|>", *SAMPLES[1:3]], add_bos=True)


def test_default_and_gpt2_cut_differently(tmp_path: Path) -> None:
    """Guards the test above: the vocabulary must tell pre-tokenizers apart."""
    ids = {}
    for pre in ("default", "gpt-2", "smollm", "llama-bpe", "qwen2", "falcon", "tekken"):
        path = tokenizer_only(tmp_path / f"{pre}.gguf", lambda writer, pre=pre: write_byte_level(writer, pre))
        folder = import_checkpoint(str(path), tmp_path / pre)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids[pre] = str([tokenizer.encode(text, add_special_tokens=False).ids for text in SAMPLES])
    assert len(set(ids.values())) == len(ids)


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece_equals_llama_cpp(space_prefix: bool, tmp_path: Path) -> None:
    path = tokenizer_only(tmp_path / "t.gguf", lambda writer: write_sentencepiece(writer, space_prefix=space_prefix))
    folder = imported(path, tmp_path)
    reference = llama_cpp_vocabulary(path)
    same_ids(folder, reference, SAMPLES[1:])
    same_ids(folder, reference, ["<s>hi</s> there", *SAMPLES[1:]], add_bos=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in SAMPLES:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokenizer_files(tmp_path: Path) -> None:
    def write(writer: gguf.GGUFWriter) -> None:
        write_byte_level(writer, "smollm")
        writer.add_add_bos_token(True)
        writer.add_eot_token_id(2)
        writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")

    folder = imported(tokenizer_only(tmp_path / "tiny.gguf", write), tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "GPT2Tokenizer" and config["bos_token"] == "<|user|>"
    assert config["chat_template"] == (folder / "chat_template.jinja").read_text()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 2]}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.token_to_id("[PAD1]") is None  # an empty id, never to be sampled
    assert tokenizer.encode("hi").ids[0] == 1
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert [theirs(text).input_ids for text in SAMPLES] == [tokenizer.encode(text).ids for text in SAMPLES]
    assert theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_ends_are_special_and_words_are_not(tmp_path: Path) -> None:
    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["!", "<|endoftext|>", "a", "b", "aa"])
        writer.add_token_types([gguf.TokenType.NORMAL] * 5)
        writer.add_token_merges(["a a"])
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(0)

    folder = imported(tokenizer_only(tmp_path / "tiny.gguf", write), tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("ab!<|endoftext|>").ids == [2, 3, 0, 1]
    assert tokenizer.decode([2, 3, 0, 1], skip_special_tokens=True) == "ab!"


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra, said",
    [
        (dict(expert_count=8), "mixture of 8 experts"),
        (dict(rope_scaling_type=gguf.RopeScalingType.YARN), "rope.scaling.type is 'yarn'"),
        (dict(value_length=32), "value_length is 32, expected the head.s 64"),
        (dict(logit_scale=2.0), "llama.logit_scale is 2.0"),
        (dict(attention_scale=2.0), "llama.attention.scale is 2.0"),
    ],
)
def test_what_the_gpt_does_not_compute_is_refused(extra: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", llama(), **extra)
    refused(path, tmp_path, said)


def refused(path: Path, folder: Path, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        imported(path, folder)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "checkpoint").exists()


def test_unknown_pre_tokenizer_is_an_error_unless_a_tokenizer_is_given(tmp_path: Path) -> None:
    path = tokenizer_only(tmp_path / "tiny.gguf", lambda writer: write_byte_level(writer, "kimi-k2"))
    refused(path, tmp_path, "tokenizer.ggml.pre is 'kimi-k2', and gptx knows .*smollm.*--tokenizer")
    known = imported(tokenizer_only(tmp_path / "k.gguf", lambda w: write_byte_level(w, "gpt-2")), tmp_path / "known")
    folder = imported(path, tmp_path, tokenizer=known)
    assert (folder / "tokenizer.json").read_text() == (known / "tokenizer.json").read_text()
    # what ends a text stands in the GGUF file, which the tokenizer.json alone does not say
    bare = imported(path, tmp_path / "bare", tokenizer=known / "tokenizer.json")
    assert (bare / "generation_config.json").read_text() == (known / "generation_config.json").read_text()


@pytest.mark.parametrize("keep", [3, 100, 3000, -1000])
def test_cut_short(keep: int, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", llama())
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, tmp_path, "is not a (whole )?GGUF file")


def test_other_architectures_and_split_files(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2")
    finish(writer)
    refused(tmp_path / "a.gguf", tmp_path, "architecture 'qwen2'.*llama and gpt2.*--via optimum")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_key_value("split.count", 3, gguf.GGUFValueType.UINT16)
    finish(writer)
    refused(tmp_path / "b.gguf", tmp_path, "one of 3 parts.*--merge")
    (tmp_path / "c.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(tmp_path / "c.gguf", tmp_path, "Git LFS pointer")


def test_missing_tensors_are_all_named(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", llama(num_hidden_layers=1), block_count=2)
    refused(path, tmp_path, "missing tensors: blk.1.attn_q.weight, .*blk.1.ffn_norm.weight")


# --- the real file -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    path = os.environ.get("GPTX_SMOLLM2_GGUF")
    if not path:
        pytest.skip("set GPTX_SMOLLM2_GGUF to SmolLM2-135M-Instruct.Q4_1.gguf")
    folder = import_checkpoint(path, tmp_path_factory.mktemp("real") / "smollm2")
    yield Path(path), folder


@pytest.mark.real
def test_smollm2_logits_equal_transformers(real: tuple[Path, Path]) -> None:
    path, folder = real
    reference = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    torch.testing.assert_close(logits(load_model(folder)), logits(reference.eval()), atol=1e-3, rtol=0)


@pytest.mark.real
def test_smollm2_token_ids_equal_llama_cpp(real: tuple[Path, Path]) -> None:
    path, folder = real
    text = Path(os.environ.get("GPTX_WIKITEXT2", "/work/shared/data/eval/wikitext2-test.txt"))
    reference = llama_cpp_vocabulary(path)
    same_ids(folder, reference, SAMPLES)
    if not text.exists():
        pytest.skip("set GPTX_WIKITEXT2 to WikiText-2's raw test text")
    same_ids(folder, reference, [text.read_text("utf-8")])
