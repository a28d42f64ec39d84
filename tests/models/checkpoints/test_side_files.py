"""The files beside the weights.

Import and export read them alike, and the ids that begin, end and pad a text are resolved in one
order.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.numpy import load

import gptx
from builders.tokenizers_of_all_kinds import byte_level
from gpt_export.export import export_checkpoint
from gptx.errors import CheckpointError
from gptx_models.checkpoints.token_ids import resolve_ids, token_ids
from gptx_models.importers import import_checkpoint

VOCABULARY = 320  # the model's ids; the tokenizer has about 300
KNOWN = byte_level().get_vocab_size()
CHATML = ("<|im_start|>", "<|im_end|>")


def flags(content: str) -> dict[str, Any]:
    plain = dict(lstrip=False, rstrip=False, single_word=False, normalized=False, special=True)
    return {"content": content, **plain}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers model with a tokenizer.json; its files state no token ids."""
    folder = tmp_path_factory.mktemp("side") / "model"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    model.save_pretrained(folder)
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").unlink()
    drop(folder / "config.json", "bos_token_id", "eos_token_id", "pad_token_id")
    return folder


def drop(file: Path, *names: str) -> None:
    values = json.loads(file.read_text())
    file.write_text(
        json.dumps({name: value for name, value in values.items() if name not in names})
    )


def copy(folder: Path, place: Path, files: dict[str, Any]) -> Path:
    """A copy of a folder whose JSON files have these fields too."""
    shutil.copytree(folder, place)
    for name, values in files.items():
        file = place / name
        if isinstance(values, str):
            file.write_text(values)
        else:
            file.write_text(
                json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **values})
            )
    return place


FAST = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|endoftext|>",
    "bos_token": "<|endoftext|>",
}
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
FOLDERS: dict[str, dict[str, Any]] = {
    "an end in tokenizer_config.json alone": {"tokenizer_config.json": FAST},
    "everything at once": {
        "config.json": {"eos_token_id": [0, 9999], "pad_token_id": -1},
        "generation_config.json": {
            "bos_token_id": [0],
            "eos_token_id": [[KNOWN + 1], -1],
            "top_k": 5,
        },
        "tokenizer_config.json": {
            **FAST,
            "add_prefix_space": True,
            "added_tokens_decoder": {
                str(KNOWN + at): flags(token) for at, token in enumerate(CHATML)
            },
            "additional_special_tokens": list(CHATML),
            "chat_template": [
                {"name": "default", "template": TEMPLATE},
                {"name": "tool_use", "template": "x"},
            ],
        },
        "special_tokens_map.json": {"eos_token": "the"},
        "README.md": "---\nlicense: mit\n---\n",
        "MODEL_CARD.md": "What this model is.",
    },
}


@pytest.mark.parametrize("name", FOLDERS)
def test_an_export_is_the_same_with_and_without_an_import(
    name: str, llama: Path, tmp_path: Path
) -> None:
    folder = copy(llama, tmp_path / "model", FOLDERS[name])
    export_checkpoint(folder, tmp_path / "a" / "out")
    export_checkpoint(import_checkpoint(str(folder), tmp_path / "imported"), tmp_path / "b" / "out")
    files = {side: contents(tmp_path / side / "out") for side in "ab"}
    assert sorted(files["a"]) == sorted(files["b"])
    for file, content in files["a"].items():
        assert content == files["b"][file], file
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    with gptx.load(tmp_path / "a" / "out", threads=1) as model:
        assert (
            model.encode("<|im_start|>the cat<|im_end|>")
            == theirs("<|im_start|>the cat<|im_end|>").input_ids
        )
        assert len(model.generate("the", max_new_tokens=3).token_ids) <= 3


def contents(folder: Path) -> dict[str, Any]:
    """The content of every file: bytes or parsed JSON.

    What names the exported weights is taken out of gptx.json, the reference and its seal.
    """
    files: dict[str, Any] = {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    manifest = json.loads(files["gptx.json"])
    del (
        manifest["source"]["checkpoint_sha256"],
        manifest["files"]["gptx_reference.safetensors"]["sha256"],
    )
    arrays = {
        name: value.tobytes() for name, value in load(files["gptx_reference.safetensors"]).items()
    }
    seal = json.loads(arrays.pop("seal"))
    del seal["manifest"]["source"]
    return {**files, "gptx.json": manifest, "gptx_reference.safetensors": (arrays, seal)}


# The ids that begin, end and pad a text


def found(*values: Any, name: str = "eos_token_id", vocab_size: int = 320) -> Any:
    """The id that resolve_ids finds.

    values: of generation_config.json, config.json and the tokenizer, in this order.
    """
    places = [
        (place, {name: value})
        for place, value in zip(("generation", "config", "tokenizer"), values)
    ]
    return resolve_ids(places, vocab_size, lambda line: None).get(name)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((3, 4, 5), 3),
        ((None, 4, 5), 4),
        ((-1, 4, 5), 4),
        (([], 4, 5), 4),
        (([None], 4, 5), 4),
        (([-1], -1, 5), 5),
        ((9999, 4, 5), 4),
        (([3, 9999], 4, 5), 3),
        (([3, 3, 4], 5, 6), [3, 4]),
        (([[3]], 4, 5), 3),
        ((3.0, 4, 5), 3),
        ((0, 4, 5), 0),
        ((310, 4, 5), 310),
        ((None, None, None), None),
    ],
)
def test_the_first_place_that_names_an_end(values: tuple[Any, ...], expected: Any) -> None:
    assert found(*values) == expected


@pytest.mark.parametrize(
    "value", ["0", "</s>", ["a"], [0, "1"], True, [False], 0.5, {"id": 0}, [[[0]]], float("nan")]
)
def test_what_is_no_id_is_refused(value: Any) -> None:
    with pytest.raises(
        CheckpointError, match="^generation: eos_token_id is .*, expected a token id"
    ):
        found(value, 4, 5)


def test_there_is_one_beginning_and_one_padding() -> None:
    said: list[str] = []
    for name in ("bos_token_id", "pad_token_id"):
        assert resolve_ids([("config.json", {name: [3, 4]})], 320, said.append) == {name: 3}
    assert said == [f"config.json: {name} is [3, 4], and there can be one: 3 is taken" for name in
                    ("bos_token_id", "pad_token_id")]  # fmt: skip


@pytest.mark.parametrize("form", ["{}", "[{}]", "[[{}]]", "{}.0", "[{}, -1]", "[{}, 9999]"])
def test_forms_of_an_end_are_transformers(form: str, llama: Path, tmp_path: Path) -> None:
    """A text ends where transformers ends it, for each form of eos_token_id that it accepts."""
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    prompt = torch.tensor([[40, 41, 42]])
    options: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    free = model.generate(prompt, eos_token_id=None, **options)[0, 3:].tolist()
    value = json.loads(form.format(free[3]))
    ended = model.generate(prompt, eos_token_id=value, **options)[0, 3:].tolist()
    assert len(ended) < len(free) and ended[-1] == free[3]
    assert token_ids(value, "it")[0] == free[3]


def test_an_end_in_the_padding_of_the_vocabulary(llama: Path, tmp_path: Path) -> None:
    """An eos id that only the tokenizer lacks ends a text, as in transformers.

    Other ids that the tokenizer lacks are never generated.
    """
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    row = model.lm_head.weight.data
    prompt = [40, 41, 42]
    with torch.no_grad():
        states = model.model(torch.tensor([prompt])).last_hidden_state[0, -1]
    row[KNOWN + 5] = states / states.norm() * 100  # the likeliest id after the prompt
    row[KNOWN + 6] = row[KNOWN + 5] * 2  # likelier still; neither a token nor an eos id
    folder = copy(
        llama, tmp_path / "model", {"generation_config.json": {"eos_token_id": [0, KNOWN + 5]}}
    )
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, KNOWN + 5]}))
    drop(folder / "config.json", "bos_token_id", "eos_token_id", "pad_token_id")
    export_checkpoint(folder, tmp_path / "out")
    with gptx.load(tmp_path / "out", threads=1) as ours:
        ended = ours.generate(prompt, max_new_tokens=4)
        assert (ended.token_ids, ended.finish_reason) == ([KNOWN + 5], "stop")
        sampled = ours.generate(
            prompt, max_new_tokens=4, temperature=1.0, seed=3, repetition_penalty=1.1
        )
        assert (sampled.token_ids, sampled.finish_reason) == ([KNOWN + 5], "stop")
        # A prompt may hold such an id. The repetition penalty must not look for it among the ids
        # that can be generated.
        assert ours.generate(
            [40, VOCABULARY - 1], max_new_tokens=2, repetition_penalty=1.2
        ).token_ids
