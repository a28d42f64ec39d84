"""Convert a checkpoint folder (gpt2 or llama) to GGUF, as a peer for `gptx bench`.

    python benchmarks/to_gguf.py smollm2-ft ft-q4_k_m.gguf --type Q4_K_M

The tokenizer must be a byte-level BPE. llama.cpp quantizes (package llama-cpp-python); for F32 the
package `gguf` is enough.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from gptx_models.checkpoints.checkpoint import load_model
from gptx_models.checkpoints.hf_names import stored_parameter
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT
from gptx_models.importers.gguf import GGUF_LAYOUTS

LLAMA: dict[str, Any] = dict(
    position="rope",
    activation="swiglu",
    norm="rmsnorm",
    attn_bias=False,
    mlp_bias=False,
    norm_bias=False,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    kinds = ("F32", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")
    parser.add_argument("--type", default="F32", choices=kinds, help="how llama.cpp quantizes it")
    args = parser.parse_args()
    if args.type == "F32":
        write_gguf(args.checkpoint, args.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder) / "f32.gguf"
        write_gguf(args.checkpoint, floats)
        quantize(floats, args.out, args.type)


def write_gguf(checkpoint: Path, out: Path) -> None:
    gpt = load_model(checkpoint)
    config = gpt.config
    architecture = "gpt2" if config.position == "learned" else "llama"
    if not written(config, architecture):
        raise SystemExit(
            f"{checkpoint} is no plain gpt2 or llama, and this program writes no other: {config}"
        )
    writer = gguf.GGUFWriter(out, architecture)
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_vocab_size(config.vocab_size)
    write_tokenizer(
        writer, checkpoint, config.vocab_size, pre="gpt-2" if architecture == "gpt2" else "smollm"
    )
    for name, rows in tensors(gpt, architecture):
        writer.add_tensor(name, rows.detach().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def written(config: GPTConfig, architecture: str) -> bool:
    """True if the GGUF metadata can describe the model completely."""
    plain = GPTConfig(
        vocab_size=config.vocab_size,
        n_ctx=config.n_ctx,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        n_kv_head=config.n_head if architecture == "gpt2" else config.n_kv_head,
        n_inner=config.n_inner,
        rope_theta=config.rope_theta,
        norm_eps=config.norm_eps,
        tied=config.tied,
        dropout=config.dropout,
        **(LLAMA if architecture == "llama" else {}),
    )
    return config == plain


def tensors(gpt: GPT, architecture: str):
    """(name, value) of each tensor; a tied head is left out.

    llama.cpp expects the rows of a llama's Q and K in interleaved rotary pairs.
    """
    config = gpt.config
    for name, parameter in gpt.named_parameters():
        place = stored_parameter(name, parameter.shape, config, GGUF_LAYOUTS[architecture])
        for piece, rows in zip(place.names, parameter.split(place.rows)):
            if architecture == "llama" and piece.endswith(("attn_q.weight", "attn_k.weight")):
                rows = to_pairs(rows, config.n_head if "attn_q." in piece else config.n_kv_head)
            yield piece, rows


def to_pairs(rows: Tensor, n_head: int) -> Tensor:
    """Reorder the rows of each head from halves to interleaved rotary pairs: 0 32 1 33 ..."""
    return rows.unflatten(0, (n_head, 2, -1)).transpose(1, 2).flatten(0, 2)


def write_tokenizer(
    writer: gguf.GGUFWriter, checkpoint: Path, vocab_size: int, *, pre: str
) -> None:
    stored = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in stored.get("added_tokens", ())}
    ids = {index: token for token, index in {**stored["model"]["vocab"], **added}.items()}
    kinds = [
        gguf.TokenType.UNUSED
        if index not in ids
        else (gguf.TokenType.CONTROL if ids[index] in added else gguf.TokenType.NORMAL)
        for index in range(vocab_size)
    ]
    merges = stored["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([ids.get(index, f"[PAD{index}]") for index in range(vocab_size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    generation = json.loads((checkpoint / "generation_config.json").read_text(encoding="utf-8"))
    for kind in ("bos", "eos"):
        token = generation.get(f"{kind}_token_id")
        if token is not None:
            getattr(writer, f"add_{kind}_token_id")(token[0] if isinstance(token, list) else token)


def quantize(floats: Path, out: Path, kind: str) -> None:
    llama_cpp: Any = importlib.import_module("llama_cpp")  # by name: type checkers need not have it
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(str(floats).encode(), str(out).encode(), params) != 0:
        raise SystemExit(f"llama.cpp could not quantize {floats} to {kind}")


if __name__ == "__main__":
    main()
