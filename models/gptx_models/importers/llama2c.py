"""llama2.c's .bin -> GPT, and its tokenizer.bin -> a tokenizer.

Version 0 of the .bin is fp32 and has no magic number, version 1 is fp32, version 2 int8. The format
stores the two rows of a rotary pair of Q and K next to each other; they are reordered into halves
here.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gptx.artifact.hashes import sha256
from gptx.errors import CheckpointError
from gptx_models.checkpoints.family import family_of
from gptx_models.checkpoints.hf_names import LAYOUTS, to_halves
from gptx_models.checkpoints.read_files import check_file
from gptx_models.checkpoints.sentencepiece_bpe import sentencepiece_tokenizer
from gptx_models.checkpoints.tensor_source import TensorSource, showing_progress
from gptx_models.checkpoints.tokenizer_files import TokenizerFiles
from gptx_models.checkpoints.tokenizer_parts import set_bos_eos
from gptx_models.checkpoints.weights import build
from gptx_models.checkpoints.write_tokenizer import new_tokenizer_files
from gptx_models.gpt.config import GPTConfig
from gptx_models.importers.imported import Imported, Tell, quiet

_MAGIC = 0x616B3432  # "ak42"
_HEADER_BYTES = 256  # of versions 1 and 2
_HEADER_BYTES_0 = 28  # of version 0


@dataclass(frozen=True)
class _Header:
    """The header of a .bin.

    start: the byte at which the weights begin. group: how many weights share one scale (version 2).
    """

    config: GPTConfig
    version: int
    start: int
    group: int


def import_llama2c(path: Path, *, tokenizer_wanted: bool = True, tell: Tell = quiet) -> Imported:
    """Read a .bin, and the tokenizer.bin beside it if there is one.

    `tell` is called with a line about the tokenizer. Raises CheckpointError.
    """
    check_file(path)
    header = _read_header(path)
    source = _source(path, header)
    with showing_progress(source) as tensors:
        model = build(header.config, LAYOUTS["llama"], tensors)
    assert family_of(header.config) == "llama"
    about = {
        "format": "llama2.c",
        "name": path.stem,
        "sha256": {path.name: sha256(path)},
        "tensor_types": source.types,
    }
    beside = path.parent / "tokenizer.bin"
    if not tokenizer_wanted or not beside.exists():
        return Imported(model, about)
    tell(f"the tokenizer is made from {beside}")
    tokenizer = read_tokenizer_bin(beside, header.config.vocab_size)
    return Imported(model, about, tokenizer.files, tokenizer.generation)


def _read_header(path: Path) -> _Header:
    with path.open("rb") as file:
        raw = file.read(_HEADER_BYTES)
    if len(raw) < _HEADER_BYTES_0:
        raise CheckpointError(f"{path} is too short to be a .bin of llama2.c: {len(raw)} bytes")
    magic, version = struct.unpack("<Ii", raw[:8])
    if magic != _MAGIC:
        numbers = struct.unpack("<7i", raw[:_HEADER_BYTES_0])
        config = _config(numbers, numbers[5] > 0, path)
        return _Header(config, version=0, start=_HEADER_BYTES_0, group=0)
    if version not in (1, 2) or len(raw) < _HEADER_BYTES:
        raise CheckpointError(
            f"{path} is of version {version} of llama2.c's format, expected 0, 1 or 2"
        )
    shared, group = struct.unpack("<Bi", raw[36:41])
    config = _config(struct.unpack("<7i", raw[8:36]), bool(shared), path)
    return _Header(config, version, _HEADER_BYTES, group if version == 2 else 0)


def _config(numbers: tuple[int, ...], tied: bool, path: Path) -> GPTConfig:
    """The GPTConfig of the seven numbers in a header. tied: the head is the embedding."""
    dim, hidden, n_layer, n_head, n_kv_head, vocab_size, n_ctx = numbers
    try:
        return GPTConfig(
            vocab_size=abs(vocab_size),  # negative in version 0 if the head is not tied
            n_ctx=n_ctx,
            n_layer=n_layer,
            n_head=n_head,
            n_kv_head=n_kv_head,
            n_embd=dim,
            n_inner=hidden,
            position="rope",
            activation="swiglu",
            norm="rmsnorm",
            attn_bias=False,
            mlp_bias=False,
            tied=tied,
        )
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not a .bin of llama2.c: its header says {list(numbers)} ({error})"
        ) from error


def _shapes(config: GPTConfig, version: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by its Hugging Face name, in the file's order."""
    c, q, kv = config, config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    layers = range(c.n_layer)

    def each(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"model.layers.{i}.{name}.weight": shape for i in layers}

    embedding = {"model.embed_tokens.weight": (c.vocab_size, c.n_embd)}
    norm1, norm2 = each("input_layernorm", c.n_embd), each("post_attention_layernorm", c.n_embd)
    norm = {"model.norm.weight": (c.n_embd,)}
    attention = {
        **each("self_attn.q_proj", q, c.n_embd),
        **each("self_attn.k_proj", kv, c.n_embd),
        **each("self_attn.v_proj", kv, c.n_embd),
        **each("self_attn.o_proj", c.n_embd, q),
    }
    mlp = {
        **each("mlp.gate_proj", c.n_inner, c.n_embd),
        **each("mlp.down_proj", c.n_embd, c.n_inner),
        **each("mlp.up_proj", c.n_inner, c.n_embd),
    }
    head = {} if c.tied else {"lm_head.weight": (c.vocab_size, c.n_embd)}
    if version == 0:
        tables = {
            "rotary.cos": (c.n_ctx, c.head_dim // 2),
            "rotary.sin": (c.n_ctx, c.head_dim // 2),
        }
        return {**embedding, **norm1, **attention, **norm2, **mlp, **norm, **tables, **head}
    return {**norm1, **norm2, **norm, **embedding, **attention, **mlp, **head}


def _source(path: Path, header: _Header) -> TensorSource:
    """The tensors of a .bin. Raises CheckpointError if the file has not the header's size."""
    config, group = header.config, header.group
    shapes = _shapes(config, header.version)
    quantized = {name for name, shape in shapes.items() if header.version == 2 and len(shape) == 2}
    if quantized and (group < 1 or any(math.prod(shapes[name]) % group for name in quantized)):
        raise CheckpointError(
            f"{path} is not a .bin of llama2.c: its header says groups of {group} weights"
        )
    offsets: dict[str, int] = {}
    end = header.start
    for name, shape in shapes.items():
        offsets[name] = end
        count = math.prod(shape)
        end += count + 4 * (count // group) if name in quantized else 4 * count
    size = path.stat().st_size
    if size != end:
        raise CheckpointError(
            f"{path} has {size:,} bytes, and its header (version {header.version}, {config.n_layer}"
            f" layers of width {config.n_embd}, {config.vocab_size:,} tokens) asks for {end:,}: it"
            " is cut short, or not of llama2.c"
        )
    data = np.memmap(path, mode="r")

    def read(name: str) -> Tensor:
        count, start = math.prod(shapes[name]), offsets[name]
        if name in quantized:
            scales = data[start + count : start + count + 4 * (count // group)].view("<f4")
            flat = data[start : start + count].view(np.int8).reshape(-1, group) * scales[:, None]
        else:
            flat = data[start : start + 4 * count].view("<f4")
        return torch.from_numpy(np.array(flat, dtype=np.float32)).reshape(shapes[name])

    def reorder_rows(name: str, value: Tensor) -> Tensor:
        if ".q_proj." in name:
            return to_halves(value, config.n_head)
        return to_halves(value, config.n_kv_head) if ".k_proj." in name else value

    weights = {name: shape for name, shape in shapes.items() if not name.startswith("rotary.")}
    types = {name: "Q8_0" if name in quantized else "F32" for name in weights}
    return TensorSource(str(path), weights, read, types, reorder_rows)


def read_tokenizer_bin(path: Path, vocab_size: int) -> TokenizerFiles:
    """The tokenizer in llama2.c's tokenizer.bin: the score and text of each token.

    vocab_size: the model's; the file does not state it. Raises CheckpointError.
    """
    check_file(path)
    raw = path.read_bytes()
    tokens, scores, at = [], [], 4  # the first 4 bytes are the longest token's length
    try:
        for _ in range(vocab_size):
            score, length = struct.unpack_from("<fi", raw, at)
            tokens.append(struct.unpack_from(f"<{length}s", raw, at + 8)[0].decode("utf-8"))
            scores.append(score)
            at += 8 + length
    except (struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a tokenizer.bin of {vocab_size:,} tokens: it is broken after"
            f" {len(tokens):,} ({error})"
        ) from error
    tokens = [token.replace(" ", "▁") for token in tokens]
    tokens[:3] = ["<unk>", "<s>", "</s>"]  # the file has "\n<s>\n", "\n</s>\n"
    normal = [token_id > 2 and not token.startswith("<0x") for token_id, token in enumerate(tokens)]
    tokenizer = sentencepiece_tokenizer(tokens, scores, normal, unknown="<unk>", space_prefix=True)
    tokenizer.add_special_tokens(tokens[:3])
    set_bos_eos(tokenizer, "<s>", None)
    special = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    files = new_tokenizer_files(
        tokenizer, tokenizer_class="LlamaTokenizer", special=special, add_bos=True
    )
    return TokenizerFiles(files, {"bos_token_id": 1, "eos_token_id": 2})
