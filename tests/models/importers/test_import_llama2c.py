"""llama2.c's .bin (versions 0, 1, 2) and tokenizer.bin, against run.c rewritten in numpy."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from gptx.errors import CheckpointError
from gptx_models.checkpoints.checkpoint import load_model
from gptx_models.importers import import_checkpoint

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT = 32, 64, 2, 4, 2, 300, 16
IDS = [1, 17, 42, 5, 299, 0, 42]
Weights = dict[str, np.ndarray]


def weights(*, shared: bool) -> Weights:
    rng = np.random.default_rng(0)
    kv = KV_HEADS * DIM // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings": (VOCAB, DIM),
        "attention_norm": (LAYERS, DIM),
        "wq": (LAYERS, DIM, DIM),
        "wk": (LAYERS, kv, DIM),
        "wv": (LAYERS, kv, DIM),
        "wo": (LAYERS, DIM, DIM),
        "ffn_norm": (LAYERS, DIM),
        "w1": (LAYERS, HIDDEN, DIM),
        "w2": (LAYERS, DIM, HIDDEN),
        "w3": (LAYERS, HIDDEN, DIM),
        "norm": (DIM,),
    }
    if not shared:
        shapes["output"] = (VOCAB, DIM)
    return {
        name: (rng.standard_normal(shape) * 0.3).astype(np.float32)
        for name, shape in shapes.items()
    }


def write(path: Path, w: Weights, version: int, *, group: int = 32) -> Weights:
    """Write a .bin as llama2.c's export.py does.

    Returns the weights that a reader sees: int8 rounds them.
    """
    shared = "output" not in w
    header = [DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT]
    tables = {
        "freqs_cos": np.zeros((CONTEXT, DIM // HEADS // 2)),
        "freqs_sin": np.zeros((CONTEXT, DIM // HEADS // 2)),
    }
    norms = ("attention_norm", "ffn_norm", "norm")
    if version == 0:
        order = [
            "tok_embeddings",
            "attention_norm",
            "wq",
            "wk",
            "wv",
            "wo",
            "ffn_norm",
            "w1",
            "w2",
            "w3",
            "norm",
        ]
        order += [*tables, "output"]
        start = struct.pack("<7i", *header[:5], VOCAB if shared else -VOCAB, CONTEXT)
    else:
        order = [*norms, "tok_embeddings", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "output"]
        start = struct.pack("<Ii7iB", 0x616B3432, version, *header, shared)
        start += struct.pack("<i", group) if version == 2 else b""
        start = start.ljust(256, b"\0")
    seen: Weights = {}
    with path.open("wb") as file:
        file.write(start)
        for name in order:
            value = {**w, **tables}.get(name)
            if value is None:
                continue
            if version < 2 or name in norms:
                file.write(value.astype("<f4").tobytes())
                seen[name] = value
                continue
            layers = value if value.ndim == 3 else value[None]
            rounded = []
            for layer in layers:
                blocks = layer.reshape(-1, group)
                scale = (np.abs(blocks).max(1) / 127).astype(np.float32)
                int8 = np.round(blocks / scale[:, None]).astype(np.int8)
                file.write(int8.tobytes() + scale.tobytes())
                rounded.append((int8 * scale[:, None]).reshape(layer.shape))
            seen[name] = np.stack(rounded).reshape(value.shape)
    return seen


def run_c(w: Weights, ids: list[int]) -> np.ndarray:
    """forward() of run.c: one position at a time, neighbouring rows as rotary pairs."""
    head = DIM // HEADS
    caches = [([], []) for _ in range(LAYERS)]
    rows = []

    def rmsnorm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return gain * (x / np.sqrt((x * x).mean() + 1e-5))

    def rotate(x: np.ndarray, position: int) -> np.ndarray:
        out = x.copy()
        for i in range(0, len(x), 2):
            angle = position / 10000.0 ** ((i % head) / head)
            c, s = np.cos(angle), np.sin(angle)
            out[i], out[i + 1] = x[i] * c - x[i + 1] * s, x[i] * s + x[i + 1] * c
        return out

    for position, token in enumerate(ids):
        x = w["tok_embeddings"][token].astype(np.float64)
        for layer, (keys, values) in enumerate(caches):
            h = rmsnorm(x, w["attention_norm"][layer])
            q = rotate(w["wq"][layer] @ h, position)
            keys.append(rotate(w["wk"][layer] @ h, position))
            values.append(w["wv"][layer] @ h)
            mixed = []
            for n in range(HEADS):
                part = slice(n // (HEADS // KV_HEADS) * head, (n // (HEADS // KV_HEADS) + 1) * head)
                scores = np.array(
                    [q[n * head : (n + 1) * head] @ key[part] for key in keys]
                ) / np.sqrt(head)
                shares = np.exp(scores - scores.max())
                mixed.append(shares / shares.sum() @ np.array([value[part] for value in values]))
            x = x + w["wo"][layer] @ np.concatenate(mixed)
            h = rmsnorm(x, w["ffn_norm"][layer])
            gate = w["w1"][layer] @ h
            x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ h))
        rows.append(w.get("output", w["tok_embeddings"]) @ rmsnorm(x, w["norm"]))
    return np.array(rows)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_logits(version: int, shared: bool, tmp_path: Path) -> None:
    seen = write(tmp_path / "stories.bin", weights(shared=shared), version)
    folder = import_checkpoint(str(tmp_path / "stories.bin"), tmp_path / "checkpoint")
    model = load_model(folder)
    assert model.config.tied == shared and model.config.n_ctx == CONTEXT
    with torch.no_grad():
        found = model(torch.tensor([IDS]))[0].numpy()
    np.testing.assert_allclose(found, run_c(seen, IDS), atol=1e-4)
    about = json.loads((folder / "gptx_source.json").read_text())
    kind = "Q8_0" if version == 2 else "F32"
    assert (
        about["format"] == "llama2.c"
        and about["tensor_types"]["model.layers.1.self_attn.k_proj.weight"] == kind
    )


def vocabulary() -> list[tuple[str, float]]:
    """(text, score) of each token, as tokenizer.bin holds them.

    Spaces are written as spaces; bos and eos have line breaks around them.
    """
    rows = [
        ("<unk>", 0.0),
        ("\n<s>\n", 0.0),
        ("\n</s>\n", 0.0),
        *((f"<0x{byte:02X}>", 0.0) for byte in range(256)),
    ]
    learned = [
        "on",
        "ce",
        "on ce",
        " t",
        "he",
        " the",
        " on",
        " once",
        "once",
        "ti",
        "me",
        "time",
        " time",
    ]
    rows += [(text, -float(rank)) for rank, text in enumerate(learned)]
    return rows + [(character, -100.0 - i) for i, character in enumerate(" ncotheimu,.O")]


def write_tokenizer(path: Path) -> None:
    rows = [(text.encode(), score) for text, score in vocabulary()]
    rows += [(f"padding{i}".encode(), -1e6) for i in range(VOCAB - len(rows))]
    longest = max(len(text) for text, _ in rows)
    path.write_bytes(
        struct.pack("<i", longest)
        + b"".join(struct.pack("<fi", score, len(text)) + text for text, score in rows)
    )


def encode_c(text: str) -> list[int]:
    """encode() of run.c.

    A space is put before the text; then the pair of neighbours with the best score is merged, until
    no pair makes a token.
    """
    rows = vocabulary()
    ids = {token: i for i, (token, _) in enumerate(rows)}
    tokens = [1, ids[" "]] if text else [1]
    for character in text:
        tokens += (
            [ids[character]] if character in ids else [byte + 3 for byte in character.encode()]
        )
    while True:
        pairs = [(rows[a][0] + rows[b][0], at) for at, (a, b) in enumerate(zip(tokens, tokens[1:]))]
        known = [(rows[ids[pair]][1], -at) for pair, at in pairs if pair in ids]
        if not known:
            return tokens
        at = -max(known)[1]
        tokens[at : at + 2] = [ids[rows[tokens[at]][0] + rows[tokens[at + 1]][0]]]


def test_tokenizer_bin(tmp_path: Path) -> None:
    write(tmp_path / "stories.bin", weights(shared=True), 0)
    write_tokenizer(tmp_path / "tokenizer.bin")
    said: list[str] = []
    folder = import_checkpoint(
        str(tmp_path / "stories.bin"), tmp_path / "checkpoint", tell=said.append
    )
    assert f"the tokenizer is made from {tmp_path / 'tokenizer.bin'}" in said
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("Once upon a time, the time.", "on ce the", "", "  two  ", "é 日 😀\n"):
        assert tokenizer.encode(text).ids == encode_c(text), text
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert (
        json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]
        == "LlamaTokenizer"
    )


def version_2(group: int) -> bytes:
    numbers = (DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT)
    return struct.pack("<Ii7iBi", 0x616B3432, 2, *numbers, 1, group).ljust(256, b"\0")


@pytest.mark.parametrize(
    "damage, said",
    [
        (
            lambda raw: raw[:-4],
            "bytes, and its header .version 0, 2 layers of width 32, 300 tokens. asks for",
        ),
        (lambda raw: raw[:20], "too short"),
        (lambda raw: b"\x00" * 300, "its header says"),
        (
            lambda raw: struct.pack("<Ii", 0x616B3432, 7) + raw[8:],
            "version 7 .* expected 0, 1 or 2",
        ),
        *(
            (lambda raw, group=group: version_2(group) + raw, f"groups of {group} weights")
            for group in (0, -32, 7, 2**31 - 1)
        ),
    ],
)
def test_damaged(damage: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "stories.bin"
    write(path, weights(shared=True), 0)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=said) as caught:
        import_checkpoint(str(path), tmp_path / "out")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "stories.bin", weights(shared=True), 0)
    write_tokenizer(tmp_path / "t.bin")
    (tmp_path / "t.bin").write_bytes((tmp_path / "t.bin").read_bytes()[:-5])
    with pytest.raises(
        CheckpointError, match="not a tokenizer.bin of 300 tokens: it is broken after 299"
    ):
        import_checkpoint(
            str(tmp_path / "stories.bin"), tmp_path / "out", tokenizer=tmp_path / "t.bin"
        )
