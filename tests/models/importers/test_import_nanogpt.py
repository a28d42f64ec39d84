"""nanoGPT's ckpt.pt and meta.pkl, against nanoGPT's model rewritten here."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

from gptx.errors import CheckpointError
from gptx_models.checkpoints.checkpoint import load_model
from gptx_models.importers import import_checkpoint
from gptx_models.importers.nanogpt import read_meta

transformers = pytest.importorskip("transformers")  # the independent reference

ARGS = dict(n_layer=2, n_head=2, n_embd=16, block_size=12, bias=False, vocab_size=20, dropout=0.1)
IDS = torch.tensor([[1, 5, 3, 19, 0, 7], [2, 2, 4, 8, 16, 11]])


class Block(nn.Module):
    """A block of karpathy/nanoGPT's model.py, at inference."""

    def __init__(self, width: int, n_head: int, bias: bool) -> None:
        super().__init__()
        self.n_head = n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attn = nn.ModuleDict(
            {
                "c_attn": nn.Linear(width, 3 * width, bias=bias),
                "c_proj": nn.Linear(width, width, bias=bias),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(width, 4 * width, bias=bias),
                "c_proj": nn.Linear(4 * width, width, bias=bias),
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        parts = self.attn["c_attn"](self.ln_1(x)).split(c, dim=2)
        q, k, v = (part.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.attn["c_proj"](y)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class NanoGPT(nn.Module):
    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        width = args["n_embd"]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(args["vocab_size"], width),
                "wpe": nn.Embedding(args["block_size"], width),
                "h": nn.ModuleList(
                    Block(width, args["n_head"], args["bias"]) for _ in range(args["n_layer"])
                ),
                "ln_f": nn.LayerNorm(width, bias=args["bias"]),
            }
        )
        self.lm_head = nn.Linear(width, args["vocab_size"], bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def checkpoint(path: Path, *, prefix: str = "", **changes: Any) -> NanoGPT:
    """Write a ckpt.pt as nanoGPT's train.py does, and return its model."""
    args = {**ARGS, **changes}
    torch.manual_seed(0)
    model = NanoGPT(args).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    content = {
        "model": {prefix + name: value for name, value in model.state_dict().items()},
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "model_args": args,
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "tiny_char", "out_dir": "out-tiny"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return model


def meta(path: Path, characters: str = "\n !abcdefghijklmnopq") -> str:
    stoi = {character: i for i, character in enumerate(characters)}
    content = {"vocab_size": len(stoi), "itos": {i: c for c, i in stoi.items()}, "stoi": stoi}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return characters


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_logits(bias: bool, prefix: str, tmp_path: Path) -> None:
    reference = checkpoint(tmp_path / "out-tiny" / "ckpt.pt", prefix=prefix, bias=bias)
    folder = import_checkpoint(str(tmp_path / "out-tiny" / "ckpt.pt"), tmp_path / "checkpoint")
    with torch.no_grad():
        expected = reference(IDS)
        torch.testing.assert_close(load_model(folder)(IDS), expected, atol=1e-4, rtol=0)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        torch.testing.assert_close(theirs(IDS).logits, expected, atol=1e-4, rtol=0)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt2"
    about = json.loads((folder / "gptx_source.json").read_text())
    assert (
        about["format"] == "nanogpt"
        and about["tensor_types"]["transformer.h.1.mlp.c_fc.weight"] == "F32"
    )


@pytest.mark.parametrize(
    "place", ["out-tiny/meta.pkl", "data/tiny_char/meta.pkl", "elsewhere/meta.pkl"]
)
def test_characters_become_a_tokenizer(place: str, tmp_path: Path) -> None:
    checkpoint(tmp_path / "out-tiny" / "ckpt.pt")
    characters = meta(tmp_path / place)
    given = tmp_path / place if "elsewhere" in place else None
    folder = import_checkpoint(
        str(tmp_path / "out-tiny" / "ckpt.pt"), tmp_path / "checkpoint", tokenizer=given
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("abba! \n\nqed", "  \n", characters):
        ids = tokenizer.encode(text).ids
        assert ids == [characters.index(character) for character in text]
        assert tokenizer.decode(ids) == text
    with pytest.raises(Exception, match="WordLevel"):
        tokenizer.encode("Z")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs("abba").input_ids == tokenizer.encode("abba").ids


class Evil:
    ran = False

    def __reduce__(self) -> Any:
        return (setattr, (Evil, "ran", True))


def test_nothing_in_a_file_runs_unless_allowed(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    checkpoint(path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "config": Evil()}, path)
    with pytest.raises(CheckpointError, match="Python objects beyond tensors.*--allow-pickle"):
        import_checkpoint(str(path), tmp_path / "out")
    checkpoint(path)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"stoi": {"a": 0}, "more": Evil()}))
    with pytest.raises(
        CheckpointError, match="meta.pkl holds more than plain values.*setattr.*--allow-pickle"
    ):
        import_checkpoint(str(path), tmp_path / "out")
    assert not Evil.ran and not (tmp_path / "out").exists()
    import_checkpoint(str(path), tmp_path / "out", allow_pickle=True)
    assert Evil.ran


@pytest.mark.parametrize(
    "content, said",
    [
        ({"weights": 1}, "expected the keys model and model_args"),
        (
            {"model": {}, "model_args": {"dim": 288, "n_layers": 6}},
            "model_args lacks n_layer, n_head, n_embd, block_size",
        ),
        (
            {"model": {}, "model_args": ARGS},
            "missing tensors: transformer.wte.weight, .*transformer.ln_f.weight",
        ),
        ({"model": {}, "model_args": {**ARGS, "n_head": 3.5}}, "n_head is 3.5"),
        (
            {"model": {"a": torch.zeros(2, 2).to_sparse()}, "model_args": ARGS},
            "a is sparse, nested or without values",
        ),
        (
            {"model": {"a": torch.empty(2, 2, device="meta")}, "model_args": ARGS},
            "a is sparse, nested or without",
        ),
        (
            {"model": {"a": torch.zeros(1).expand(2**30)}, "model_args": ARGS},
            "would have 4,294,967,296 bytes",
        ),
    ],
)
def test_other_files(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=said) as caught:
        import_checkpoint(str(tmp_path / "ckpt.pt"), tmp_path / "out")
    assert str(tmp_path / "ckpt.pt") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-2000], lambda raw: raw[:50], lambda raw: b"text" * 99]
)
def test_damaged(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    checkpoint(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="ckpt.pt") as caught:
        import_checkpoint(str(path), tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [5, [], {"dataset": 5}, {"dataset": "a" * 5000}, {"dataset": "\0"}]
)
def test_settings_that_name_no_data_set(settings: Any, tmp_path: Path) -> None:
    """The weights are nn.Parameters, as in a file that was not made from a state_dict."""
    path = tmp_path / "ckpt.pt"
    model = checkpoint(path)
    content = torch.load(path, weights_only=True)
    weights = {name: nn.Parameter(value) for name, value in model.state_dict().items()}
    torch.save({**content, "model": weights, "config": settings}, path)
    import_checkpoint(str(path), tmp_path / "out")
    assert torch.equal(
        load_model(tmp_path / "out").wte.weight, model.state_dict()["transformer.wte.weight"]
    )


BROKEN_META = {
    "empty": b"",
    "text": b"not a pickle",
    "cut short": pickle.dumps([1])[:-2],
    "a frame of 2**64 bytes": b"\x80\x04\x95" + b"\xff" * 8,
    "bytes of 2**40": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x",
    "place 2**32 of the memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a list as a key": b"\x80\x02}]K\x01s.",
    **{
        f"{stoi!a:.30}": pickle.dumps({"stoi": stoi})
        for stoi in (
            {"ab": 0},
            {"a": "b"},
            {"a": 1.5},
            {"a": -1},
            {"a": 2**31},
            {"a": 2**5000},
            {"a": 0, "b": 0},
            {"a": 0, "b": 15},
            {"a": True},
            {"\ud800": 0},
        )
    },
}


@pytest.mark.parametrize("raw", BROKEN_META.values(), ids=list(BROKEN_META))
def test_broken_meta(raw: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "meta.pkl").write_bytes(raw)
    with pytest.raises(CheckpointError, match="meta.pkl"):
        read_meta(tmp_path / "meta.pkl")
    # Given a hole in the ids, the tokenizers library would print a line.
    assert capfd.readouterr() == ("", "")
