"""GGUF files: weights and token ids.

Weights are compared with transformers and llama.cpp's dequantization, token ids with llama.cpp.
"""

from __future__ import annotations

import ctypes
import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Q
from tokenizers import Tokenizer

from builders.gguf_files import (
    SAMPLES,
    finish,
    imported,
    llama,
    logits,
    quantized,
    randomized,
    tokenizer_only,
    write_byte_level,
    write_gpt2,
    write_llama,
    write_sentencepiece,
)
from gptx.errors import CheckpointError
from gptx_models.checkpoints.checkpoint import load_config, load_model
from gptx_models.importers import import_checkpoint
from gptx_models.importers.gguf_pre_tokenizers import PRE_TOKENIZERS

transformers = pytest.importorskip("transformers")  # the independent reference

# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q4_K, Q.Q6_K],
    ids=lambda kind: kind.name,
)
def test_every_type_of_tensor_as_transformers_reads_it(kind: Q, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", llama(tie_word_embeddings=False), kind)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    )
    folder = imported(path, tmp_path)
    torch.testing.assert_close(
        logits(load_model(folder)), logits(reference.eval()), atol=1e-4, rtol=0
    )
    about = json.loads((folder / "gptx_source.json").read_text())
    assert (
        about["format"] == "gguf"
        and about["licence"] == "mit"
        and about["sha256"].keys() == {path.name}
    )
    assert about["tensor_types"]["model.layers.0.self_attn.k_proj.weight"] == kind.name
    assert about["tensor_types"]["lm_head.weight"] == kind.name
    assert about["tensor_types"]["model.norm.weight"] == "F32"


@pytest.mark.parametrize(
    "kind", [Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q4_K, Q.Q6_K], ids=lambda kind: kind.name
)
def test_dequantization_equals_llama_cpp(kind: Q, tmp_path: Path) -> None:
    library = Path(pytest.importorskip("llama_cpp").__file__).parent / "lib"
    found = sorted(library.glob("*ggml-base*"))
    if not found:
        pytest.skip("llama-cpp-python came without libggml-base")
    rng = np.random.default_rng(1)
    raw = np.ascontiguousarray(
        quantized(rng.standard_normal((4, 512), dtype=np.float32), kind, rng)
    )
    ours = gguf.dequantize(raw, kind)
    theirs = np.empty_like(ours)
    function = getattr(
        ctypes.CDLL(str(found[0])), f"dequantize_row_{kind.name.replace('Q', 'q', 1)}"
    )
    function(
        raw.ctypes.data_as(ctypes.c_void_p),
        theirs.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(theirs.size),
    )
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
def test_llama_equals_the_model_it_was_written_from(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    reference = llama(**changes)
    path = write_llama(tmp_path / "tiny.gguf", reference)
    if "rope_scaling" in changes:
        path = with_rope_factors(path, reference)
    folder = imported(path, tmp_path)
    assert load_config(folder).tied == reference.config.tie_word_embeddings
    torch.testing.assert_close(logits(load_model(folder)), logits(reference), atol=1e-4, rtol=0)


def with_rope_factors(path: Path, model: transformers.LlamaForCausalLM) -> Path:
    """A GGUF file with Llama 3.1's scaling, as llama.cpp's converter stores it.

    The tensor rope_freqs.weight has one factor for each rotary frequency.
    """
    plain = model.config.rope_theta ** (
        -np.arange(0, model.config.head_dim, 2) / model.config.head_dim
    )
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


# --- tokenizers -----------------------------------------------------------------------------------


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
    # llama.cpp's pattern for tekken lacks combining marks; ours is that of the model's own
    # tokenizer.json.
    marks = [
        text
        for text in SAMPLES
        if any(unicodedata.category(character)[0] == "M" for character in text)
    ]
    same_ids(folder, reference, [text for text in SAMPLES if pre != "tekken" or text not in marks])
    same_ids(
        folder, reference, ["<|user|>hi<|end|> <tool>1</tool><|user|>", *SAMPLES[1:3]], add_bos=True
    )


def test_default_and_gpt2_cut_differently(tmp_path: Path) -> None:
    """The vocabulary of the test above tells these pre-tokenizers apart."""
    ids = {}
    for pre in ("default", "gpt-2", "smollm", "llama-bpe", "qwen2", "falcon", "tekken"):
        path = tokenizer_only(
            tmp_path / f"{pre}.gguf", lambda writer, pre=pre: write_byte_level(writer, pre)
        )
        folder = import_checkpoint(str(path), tmp_path / pre)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids[pre] = str([tokenizer.encode(text, add_special_tokens=False).ids for text in SAMPLES])
    assert len(set(ids.values())) == len(ids)


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece_equals_llama_cpp(space_prefix: bool, tmp_path: Path) -> None:
    path = tokenizer_only(
        tmp_path / "t.gguf", lambda writer: write_sentencepiece(writer, space_prefix=space_prefix)
    )
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
    assert tokenizer.token_to_id("[PAD1]") is None  # an unused id
    assert tokenizer.encode("hi").ids[0] == 1
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert [theirs(text).input_ids for text in SAMPLES] == [
        tokenizer.encode(text).ids for text in SAMPLES
    ]
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


# --- what is refused ------------------------------------------------------------------------------


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
def test_what_the_gpt_does_not_compute_is_refused(
    extra: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = write_llama(tmp_path / "tiny.gguf", llama(), **extra)
    refused(path, tmp_path, said)


def refused(path: Path, folder: Path, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        imported(path, folder)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "checkpoint").exists()


def test_unknown_pre_tokenizer_is_an_error_unless_a_tokenizer_is_given(tmp_path: Path) -> None:
    path = tokenizer_only(
        tmp_path / "tiny.gguf", lambda writer: write_byte_level(writer, "kimi-k2")
    )
    refused(path, tmp_path, "tokenizer.ggml.pre is 'kimi-k2', and gptx knows .*smollm.*--tokenizer")
    known = imported(
        tokenizer_only(tmp_path / "k.gguf", lambda w: write_byte_level(w, "gpt-2")),
        tmp_path / "known",
    )
    folder = imported(path, tmp_path, tokenizer=known)
    assert (folder / "tokenizer.json").read_text() == (known / "tokenizer.json").read_text()
    # The end tokens are taken from the GGUF file; the tokenizer.json does not state them.
    bare = imported(path, tmp_path / "bare", tokenizer=known / "tokenizer.json")
    assert (bare / "generation_config.json").read_text() == (
        known / "generation_config.json"
    ).read_text()


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


# --- the real file --------------------------------------------------------------------------------


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
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    torch.testing.assert_close(
        logits(load_model(folder)), logits(reference.eval()), atol=1e-3, rtol=0
    )


@pytest.mark.real
def test_smollm2_token_ids_equal_llama_cpp(real: tuple[Path, Path]) -> None:
    path, folder = real
    text = Path(os.environ.get("GPTX_WIKITEXT2", "/work/shared/data/eval/wikitext2-test.txt"))
    reference = llama_cpp_vocabulary(path)
    same_ids(folder, reference, SAMPLES)
    if not text.exists():
        pytest.skip("set GPTX_WIKITEXT2 to WikiText-2's raw test text")
    same_ids(folder, reference, [text.read_text("utf-8")])
