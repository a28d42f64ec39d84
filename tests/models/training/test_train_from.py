"""Training a checkpoint further keeps its end tokens, special tokens, template and settings.

transformers reads both the start and the output.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gptx.artifact.task import Task
from gptx.errors import GptxError, UsageError
from gptx_models.adapters.merge import merge
from gptx_models.checkpoints.checkpoint import load_config, load_model
from gptx_models.checkpoints.text_setup import read_text_setup
from gptx_models.cli.finetune import finetune
from gptx_models.cli.train import train
from gptx_models.data import corpus
from gptx_models.data.examples import Example
from gptx_models.data.pretraining import around, encode
from gptx_models.data.tokenize_examples import tokenize_examples

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [f"the cat sat on the log {n} and the dog sat on the mat {n}" for n in range(40)]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|eot|>"]
NAMED = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
GENERATION = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "do_sample": True,
    "top_k": 7,
    "max_new_tokens": 9,
}


def byte_level(special: list[str] = SPECIAL) -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def write_start(
    folder: Path,
    inner: Tokenizer,
    *,
    generation: dict[str, Any] | None = None,
    named: dict[str, str] | None = None,
) -> Path:
    """A llama of transformers with a vocabulary padded by four ids, and its tokenizer files."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    shape |= {
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config = transformers.LlamaConfig(vocab_size=inner.get_vocab_size() + 4, **shape)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    inner.save(str(folder / "tokenizer.json"))
    beside = {"tokenizer_class": "PreTrainedTokenizerFast", **(NAMED if named is None else named)}
    (folder / "tokenizer_config.json").write_text(json.dumps(beside))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(
        json.dumps(GENERATION if generation is None else generation)
    )
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def plain(folder: Path) -> Path:
    return write_start(folder, byte_level())


def adds_bos(folder: Path) -> Path:
    inner = byte_level()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return write_start(folder, inner)


def adds_bos_and_eos(folder: Path) -> Path:
    inner = byte_level()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return write_start(folder, inner)


def ends_at_several(folder: Path) -> Path:
    return write_start(folder, byte_level(), generation={**GENERATION, "eos_token_id": [3, 2]})


def ends_nowhere(folder: Path) -> Path:
    return write_start(folder, byte_level(), generation={}, named={"unk_token": "<unk>"})


def truncates(folder: Path) -> Path:
    inner = byte_level()
    inner.enable_truncation(4)
    inner.enable_padding(length=64)
    return write_start(folder, inner)


def of_gpt2(folder: Path) -> Path:
    end = "<|endoftext|>"
    named = {"bos_token": end, "eos_token": end, "unk_token": end}
    return write_start(folder, byte_level([end]), generation={"eos_token_id": 0}, named=named)


# and the tokens that stand after each of its documents
STARTS: dict[Callable[[Path], Path], list[int]] = {
    plain: [2],
    adds_bos: [2],
    adds_bos_and_eos: [2],
    ends_at_several: [2],
    ends_nowhere: [],
    truncates: [2],
    of_gpt2: [0],
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


def run(*words: object) -> Any:
    return CliRunner().invoke(
        train, [str(word) for word in (*words, "--batch-size", 2, "--device", "cpu")]
    )


def check_carried(start: Path, out: Path) -> None:
    """All that describes the start's texts is in the output, as transformers reads both."""
    before, after = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (start, out))
    assert after.special_tokens_map == before.special_tokens_map
    assert [after(text)["input_ids"] for text in TEXTS[:3]] == [
        before(text)["input_ids"] for text in TEXTS[:3]
    ]
    talk = [{"role": "user", "content": "the cat"}]
    assert after.apply_chat_template(talk, tokenize=False) == before.apply_chat_template(
        talk, tokenize=False
    )
    ours, theirs = (
        json.loads((folder / "generation_config.json").read_text()) for folder in (out, start)
    )
    one_end = [place.pop("eos_token_id", None) for place in (ours, theirs)]
    named = {
        "bos_token_id",
        "pad_token_id",
    }  # of the tokenizer's own tokens, where the start's file names none
    assert theirs.items() <= ours.items() and {*ours} - {*theirs} <= named
    assert {*np.atleast_1d(one_end[0])} == {*np.atleast_1d(one_end[1])}


@pytest.mark.parametrize("write", STARTS, ids=lambda write: write.__name__)
def test_documents_end_as_the_starts_do(
    write: Callable[[Path], Path], texts: Path, tmp_path: Path
) -> None:
    start = write(tmp_path / "start")
    done = run(texts, "--from", start, "--out", tmp_path / "out", "--steps", 1)
    assert done.exit_code == 0, done.exception
    theirs = transformers.AutoTokenizer.from_pretrained(start)
    rows = [theirs(text)["input_ids"] for text in TEXTS]
    ends = STARTS[write]
    expected = [token for row in rows for token in (row if row[-1:] == ends else [*row, *ends])]
    data = corpus.read(tmp_path / "out.run")
    assert [*data.train, *data.val] == expected
    check_carried(start, tmp_path / "out")
    source = json.loads((tmp_path / "out/gptx_source.json").read_text())
    assert (
        source["licence"] == source["start"]["licence"] == "mit"
        and source["start"]["name"] == "start"
    )
    assert load_config(tmp_path / "out") == load_config(start)


@pytest.mark.parametrize("how", ["", "--lora"])
def test_fine_tuning_carries_the_same(how: str, texts: Path, tmp_path: Path) -> None:
    start = ends_at_several(tmp_path / "start")
    options = f"--task text --out {tmp_path / 'out'} --steps 1 --batch-size 2 --device cpu"
    options += f" --context 16 {how}"
    done = CliRunner().invoke(finetune, [str(start), str(texts), *options.split()])
    assert done.exit_code == 0, done.exception
    check_carried(start, tmp_path / "out")
    assert json.loads((tmp_path / "out/gptx_source.json").read_text())["licence"] == "mit"
    if how:
        merge(tmp_path / "out", tmp_path / "merged", base=start)
        check_carried(start, tmp_path / "merged")


def test_the_starts_settings_go_before_a_shipped_recipes(texts: Path, tmp_path: Path) -> None:
    """The start replaces the temperature of the recipe minute; the command line replaces both."""
    start = plain(tmp_path / "start")
    settings = ["--set", "generation.top_k=3", "--set", "model.dropout=0.25", "--learning-rate", 0]
    done = run(texts, "--from", start, "--out", tmp_path / "out", "--steps", 1, *settings)
    assert done.exit_code == 0, done.exception
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {
        **GENERATION,
        "top_k": 3,
    }
    assert load_config(tmp_path / "out").dropout == 0.25
    first, second = (load_model(tmp_path / name).state_dict() for name in ("start", "out"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_keeps_what_it_was_begun_with(texts: Path, tmp_path: Path) -> None:
    start = plain(tmp_path / "start")
    begun = [texts, "--from", start, "--out", tmp_path / "out"]
    assert run(*begun, "--steps", 1).exit_code == 0
    again = run(*begun, "--steps", 2)
    assert again.exit_code == 0 and "going on from step 1" in again.stderr
    check_carried(start, tmp_path / "out")
    (start / "chat_template.jinja").write_text("another")
    assert "is of a run with another tokenizer" in str(run(*begun, "--steps", 3).exception)
    (start / "chat_template.jinja").write_text(TEMPLATE)
    model = transformers.LlamaForCausalLM.from_pretrained(start)
    model.model.norm.weight.data += 1
    model.save_pretrained(start)
    (start / "generation_config.json").write_text(json.dumps(GENERATION))
    assert "is of a run with another start" in str(run(*begun, "--steps", 3).exception)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--vocab-size 300", "--vocab-size is of a new tokenizer, and --from gives one"),
        ("--tokenizer other.json", "a start has its own tokenizer: leave --tokenizer out"),
        ("--set model.n_layer=3", "another shape than the recipe: n_layer 1 and not 3"),
        ("--force --out {start}", "is the source itself, and the output would replace it"),
    ],
)
def test_what_the_start_decides_is_not_given_again(
    options: str, says: str, texts: Path, tmp_path: Path
) -> None:
    start = plain(tmp_path / "start")
    refused = run(
        texts, "--from", start, "--out", tmp_path / "out", *options.format(start=start).split()
    )
    assert isinstance(refused.exception, UsageError) and says in str(refused.exception)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.run").exists()


def classifies(start: Path) -> None:
    config = transformers.LlamaConfig.from_pretrained(start, num_labels=3)
    transformers.LlamaForSequenceClassification(config).save_pretrained(start)


def holds_nan(start: Path) -> None:
    weights = load_file(start / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, start / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "says"),
    [(classifies, "gptx finetune goes on from it, with --task classify"), (holds_nan, "holds nan")],
)
def test_a_start_that_cannot_go_on(
    change: Callable[[Path], None], says: str, texts: Path, tmp_path: Path
) -> None:
    start = plain(tmp_path / "start")
    change(start)
    refused = run(texts, "--from", start, "--out", tmp_path / "out")
    assert isinstance(refused.exception, GptxError) and says in str(refused.exception)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.run").exists()


def test_too_little_text_for_a_start(tmp_path: Path) -> None:
    """Its context is its own, so a shorter one is not advised."""
    (tmp_path / "text.txt").write_text("the cat")
    refused = run(
        tmp_path / "text.txt", "--from", plain(tmp_path / "start"), "--out", tmp_path / "out"
    )
    assert str(refused.exception).endswith(
        "each must be more than the context of 32; give more text"
    )


def test_a_start_without_a_tokenizer_is_refused(texts: Path, tmp_path: Path) -> None:
    start = plain(tmp_path / "start")
    (start / "tokenizer.json").unlink()
    refused = run(texts, "--from", start, "--out", tmp_path / "out")
    assert isinstance(refused.exception, UsageError) and "has no tokenizer.json" in str(
        refused.exception
    )


def test_a_tokenizer_that_is_given_ends_its_documents(texts: Path, tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    shape = ["--set", "model.n_ctx=16", "--set", "model.n_embd=16", "--set", "model.n_layer=1"]
    done = run(
        texts,
        "--tokenizer",
        tmp_path / "tokenizer.json",
        "--out",
        tmp_path / "out",
        "--steps",
        1,
        *shape,
    )
    assert done.exit_code == 0, done.exception
    data = corpus.read(tmp_path / "out.run")
    assert [*data.train, *data.val].count(2) == len(TEXTS)
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == 2
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "</s>"


def test_a_long_document_has_one_beginning_and_one_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gptx_models.data.pretraining.PIECE", 20)
    setup = read_text_setup(adds_bos_and_eos(tmp_path / "start"), 304)
    (row,) = encode(setup.inner, ["\n".join(TEXTS[:5])], setup.ends)
    assert around(setup.inner) == ([1], [2])
    assert (row[0], row[-1], [*row].count(1), [*row].count(2)) == (1, 2, 1, 1)


def test_the_target_of_a_head_is_at_the_token_that_it_will_read(tmp_path: Path) -> None:
    """transformers reads the last token that is not padding; this tokenizer ends texts with it."""
    setup = read_text_setup(adds_bos_and_eos(tmp_path / "start"), 304)
    task = Task("classify", labels=("a", "b"), head=True)
    examples = [Example("line 1", "the cat", ("b",))]
    (row,) = tokenize_examples(examples, task, setup.tokenizer, n_ctx=16, end=2, pad=2).rows
    assert row.inputs.tolist() == setup.tokenizer.encode("the cat")[:-1] and row.targets[-1] == 1
    (row,) = tokenize_examples(examples, task, setup.tokenizer, n_ctx=16, end=2, pad=None).rows
    assert row.inputs.tolist() == setup.tokenizer.encode("the cat")
