"""gptx train from texts to a checkpoint: tokens, the loop, resuming, recipes; on a tiny model."""

from __future__ import annotations

import dataclasses
import gzip
import json
import lzma
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from gptx.errors import CheckpointError, OutputError, UsageError
from gptx_models.checkpoints.checkpoint import load_config, load_model
from gptx_models.cli.train import train as command
from gptx_models.data import corpus
from gptx_models.data import pretraining as data
from gptx_models.data.text_files import documents
from gptx_models.training import train
from gptx_models.training.precision import resolve_precision
from gptx_models.training.recipe import Recipe, read_recipe, recipe_names, write_recipe
from gptx_models.training.run_state import STATE

pytestmark = pytest.mark.usefixtures("one_thread")

STORY = (
    "Once upon a time there was a king who had three daughters,"
    " and the youngest was as fair as the day.\n"
)
RECIPE = Recipe(
    model={"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16, "dropout": 0.1},
    steps=6,
    vocab_size=300,
    batch_size=2,
    warmup=2,
    eval_every=3,
    generation={"do_sample": True, "temperature": 0.5},
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "tales.txt"
    file.write_text(
        "<|endoftext|>".join(f"{STORY}Tale {n} ends — here.\n" for n in range(40)), "utf-8"
    )
    return file


def test_trains_and_loads_again(text: Path, tmp_path: Path):
    outcome = train.train([text], tmp_path / "out", RECIPE, licence="cc0-1.0")
    assert (outcome.steps, outcome.tokens) == (6, 6 * 2 * 16)
    config = load_config(tmp_path / "out")
    assert (config.n_layer, config.n_ctx, config.vocab_size) == (1, 16, 300)
    gpt = load_model(tmp_path / "out")
    made = corpus.read(tmp_path / "out.run")
    rows = torch.from_numpy(made.val[: 3 * 16 + 1].astype(np.int64))
    windows = {"batch_size": 2, "n_ctx": 16}
    (inputs, targets), *_ = data.all_windows(made.val, **windows)
    assert torch.equal(inputs.flatten(), rows[:32]) and torch.equal(targets.flatten(), rows[1:33])
    with torch.no_grad():
        every = [
            F.cross_entropy(gpt(i).flatten(0, 1), t.flatten(), reduction="sum")
            for i, t in data.all_windows(made.val, **windows)
        ]
    assert float(sum(every)) / (len(made.val) - 1) == pytest.approx(
        outcome.val_loss, rel=2e-3
    )  # the run may be in bf16
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["do_sample"] is True and generation["eos_token_id"] == made.end
    special = json.loads((tmp_path / "out/special_tokens_map.json").read_text())
    assert special == dict.fromkeys(
        ("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>"
    )
    source = json.loads((tmp_path / "out/gptx_source.json").read_text())
    assert (
        source["licence"] == "cc0-1.0"
        and source["training"]["steps"] == 6
        and source["recipe"]["seed"] == 1
    )
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "gpt2"
    used = resolve_precision(RECIPE, torch.device("cpu"))
    assert read_recipe(str(tmp_path / "out/recipe.toml")) == used
    assert (tmp_path / "out/loss.png").stat().st_size and (
        tmp_path / "out/metrics.csv"
    ).read_text().count("\n") == 3


def test_transformers_reads_what_was_trained(text: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    train.train([text], tmp_path / "out", RECIPE)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(ids).logits, load_model(tmp_path / "out")(ids), atol=1e-5, rtol=1e-5
        )


def test_a_finished_run_stays_as_it_is(text: Path, tmp_path: Path):
    first = train.train([text], tmp_path / "out", RECIPE)
    again = train.train([text], tmp_path / "out", RECIPE)
    assert (again.steps, again.val_loss) == (first.steps, first.val_loss)


def test_other_texts_are_not_mixed_into_a_run(text: Path, tmp_path: Path):
    train.train([text], tmp_path / "out", RECIPE)
    other = tmp_path / "other.txt"
    other.write_text(text.read_text("utf-8").replace("king", "queen"), "utf-8")
    with pytest.raises(UsageError, match="other texts.*--force"):
        train.train([other], tmp_path / "out", RECIPE)
    train.train([other], tmp_path / "out", RECIPE, force=True)
    assert "queen" in data.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")).decode(
        corpus.read(tmp_path / "out.run").train.tolist()
    )


def test_a_folder_that_stands_there_is_kept(text: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("{}")
    with pytest.raises(OutputError, match="--force"):
        train.train([text], tmp_path / "out", RECIPE)
    assert not (tmp_path / "out.run").exists()


def test_a_broken_state_is_named(text: Path, tmp_path: Path):
    train.train([text], tmp_path / "out", RECIPE)
    state = tmp_path / "out.run" / STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        train.train([text], tmp_path / "out", RECIPE)


def test_a_state_of_unknown_texts_is_not_gone_on_from(text: Path, tmp_path: Path):
    train.train([text], tmp_path / "out", RECIPE)
    (tmp_path / "out.run/run.json").unlink()
    with pytest.raises(CheckpointError, match="texts are unknown.*--force"):
        train.train([text], tmp_path / "out", RECIPE)


def test_a_given_tokenizer_is_used(text: Path, tmp_path: Path):
    train.train([text], tmp_path / "first", RECIPE)
    given = tmp_path / "first/tokenizer.json"
    validation = tmp_path / "val.txt"
    validation.write_text(STORY * 3, "utf-8")
    train.train([text], tmp_path / "second", RECIPE, tokenizer=given, validation=[validation])
    assert json.loads((tmp_path / "second/tokenizer.json").read_text()) == json.loads(
        given.read_text()
    )
    val = corpus.read(tmp_path / "second.run").val
    assert data.Tokenizer.from_file(str(given)).decode(val.tolist()) == (STORY * 3).strip("\n")


def test_a_start_is_trained_on(text: Path, tmp_path: Path):
    """With a learning rate of 0 the weights stay the start's. Another shape is refused."""
    train.train([text], tmp_path / "first", RECIPE)
    still = dataclasses.replace(RECIPE, learning_rate=0.0, seed=9)
    train.train([text], tmp_path / "second", still, start=tmp_path / "first")
    first, second = (load_model(tmp_path / name).state_dict() for name in ("first", "second"))
    assert all((first[name] == second[name]).all() for name in first)
    source = json.loads((tmp_path / "second/gptx_source.json").read_text())
    assert source["start"]["recipe"]["seed"] == 1 and source["recipe"]["seed"] == 9
    other = dataclasses.replace(RECIPE, model={**RECIPE.model, "n_layer": 2})
    with pytest.raises(UsageError, match="another shape"):
        train.train([text], tmp_path / "third", other, start=tmp_path / "first")


def test_text_comes_back_from_its_tokens_and_batches_from_their_number():
    texts = ["Ein Märchen: 狐狸 🦊!\n\n  two  spaces", "\ttab"]
    tokenizer = data.train_tokenizer(texts, 300)
    tokens = np.concatenate(list(data.encode(tokenizer, texts)))
    assert tokens.dtype == np.uint16
    end = tokenizer.token_to_id(data.END_OF_TEXT)
    assert [tokenizer.decode(part) for part in _split(tokens.tolist(), end)] == texts
    batch = data.random_windows(tokens, batch_size=2, n_ctx=8, seed=3)
    inputs, targets = batch(2)
    assert torch.equal(inputs, batch(2)[0]) and not torch.equal(inputs, batch(3)[0])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_a_long_document_is_encoded_in_pieces_as_if_it_were_whole(monkeypatch: pytest.MonkeyPatch):
    text = "\n\n".join(f"Line {n},  of  two   and\nmore. " for n in range(60))
    tokenizer = data.train_tokenizer([text], 300)
    whole = tokenizer.encode(text).ids
    monkeypatch.setattr(data, "PIECE", 50)
    (row,) = data.encode(tokenizer, [text])
    assert tokenizer.decode(row.tolist()) == text and len(row) - 1 <= len(whole) + 60


def _split(ids: list[int], end: int | None) -> list[list[int]]:
    rows: list[list[int]] = [[]]
    for token in ids:
        if token == end:
            rows.append([])
        else:
            rows[-1].append(token)
    return rows[:-1]


def test_prose_joins_hard_wrapped_lines_and_drops_what_is_no_text():
    wrapped = """
# Title: The Goose Girl

There once lived an old queen whose husband had been dead for many
years, and she had a _beautiful_ daughter. When she grew up she was
betrothed to a prince who lived a great way off.
'Who is there?' asked she.

[Illustration: the goose girl]
Now the time drew near when she was to be married and to depart into
the distant kingdom; then the old queen packed up many costly things.
-------
"""
    assert data.prose(wrapped).split("\n") == [
        "There once lived an old queen whose husband had been dead for many years, and she had a"
        " beautiful daughter."
        " When she grew up she was betrothed to a prince who lived a great way off.",
        "'Who is there?' asked she.",
        "Now the time drew near when she was to be married and to depart into the distant kingdom;"
        " then the old queen"
        " packed up many costly things.",
    ]
    verse = "The sun was shining on the sea,\nShining with all his might:\n" * 4
    long = (STORY * 3).replace("\n", " ").strip()
    assert (
        data.prose(f"{long}\n\n{verse}") == f"{long}\n{verse}".strip()
    )  # lines of a page that is not wrapped stay


def test_bad_texts_are_named(tmp_path: Path):
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("\n<|endoftext|>\n")
    latin.write_bytes("Märchen".encode("latin-1"))
    with pytest.raises(UsageError, match="latin.txt is not UTF-8 text: byte 1.*0xe4"):
        list(documents([latin]))
    with pytest.raises(UsageError, match="no text in .*empty.txt"):
        train.train([empty], tmp_path / "out", RECIPE)
    with pytest.raises(UsageError, match="nothing.txt is missing"):
        train.train([tmp_path / "nothing.txt"], tmp_path / "out", RECIPE)
    short = tmp_path / "short.txt"
    short.write_text("A king.")
    with pytest.raises(UsageError, match="too few: each must be more than the context of 16"):
        train.train([short], tmp_path / "out", RECIPE)
    assert not (tmp_path / "out").exists()


def test_shipped_recipes_make_models_of_their_size():
    assert {"default", "minute"} <= set(recipe_names())
    for name in set(recipe_names()) - {"finetune"}:  # whose base decides the shape
        recipe = read_recipe(name)
        assert recipe.config(recipe.vocab_size).head_dim % 8 == 0
    changed = read_recipe("minute", ["steps=3", "model.n_layer=2", "generation.top_k=5"])
    assert (changed.steps, changed.model["n_layer"], changed.generation["top_k"]) == (3, 2, 5)
    assert changed.model["n_embd"] == read_recipe("minute").model["n_embd"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("steps = 3", "missing: model"),
        ("steps = 3\nstepz = 4\n[model]", "unknown: stepz"),
        ("steps = 0\n[model]", "steps is 0, expected a positive integer"),
        ("steps = ", "is not TOML"),
        ("x = " + "[" * 3000, "is not TOML that can be read: brackets nest too deep"),
        ("x = " + "9" * 5000, "is not TOML: Exceeds the limit"),
        (
            "steps = 3\nlearning_rate = 'fast'\n[model]",
            "learning_rate is 'fast', expected a number of 0 or more",
        ),
        (
            "steps = 3\nschedule = 'step'\n[model]",
            "schedule is 'step', expected one of cosine, wsd, constant",
        ),
        ("steps = 3\ncompile = 1\n[model]", "compile is 1, expected true or false"),
    ],
)
def test_a_bad_recipe_is_named(content: str, says: str, tmp_path: Path):
    file = tmp_path / "recipe.toml"
    file.write_text(content)
    with pytest.raises(UsageError, match=says):
        read_recipe(str(file))


def test_a_recipe_whose_model_is_none():
    with pytest.raises(UsageError, match="n_head"):
        Recipe(model={"n_layer": 1, "n_embd": 8, "n_ctx": 8}, steps=1).config(300)
    with pytest.raises(UsageError, match="unknown fields width"):
        Recipe(model={"width": 1}, steps=1).config(300)


def test_the_command(text: Path, tmp_path: Path):
    listed = CliRunner().invoke(command, ["--list"])
    assert listed.output.split() == recipe_names()
    sets = [
        "steps=2",
        "eval_every=2",
        "batch_size=2",
        "vocab_size=300",
        "model.n_ctx=16",
        "model.n_embd=16",
    ]
    options = [option for change in sets for option in ("--set", change)]
    done = CliRunner().invoke(command, [str(text), "--out", str(tmp_path / "tiny"), *options])
    assert done.exit_code == 0, done.output
    assert "step 2: loss" in done.stderr
    assert f"gptx export {tmp_path / 'tiny'} {tmp_path / 'tiny'}-onnx && gptx run" in done.stdout
    assert isinstance(CliRunner().invoke(command, []).exception, UsageError)


def test_a_recipe_is_written_as_it_is_read(tmp_path: Path):
    for name in recipe_names():
        recipe = read_recipe(name)
        write_recipe(recipe, tmp_path / "recipe.toml")
        assert read_recipe(str(tmp_path / "recipe.toml")) == recipe


def test_every_setting_is_an_option(text: Path, tmp_path: Path):
    options = """--steps 3 --eval-every 2 --batch-size 2 --vocab-size 300 --optimizer muon
    --learning-rate 3e-3 --schedule wsd --no-compile --accumulate 2 --precision fp32 --sample Once
    --set model.n_ctx=16"""
    done = CliRunner().invoke(
        command, [str(text), "--out", str(tmp_path / "out"), *options.split()]
    )
    assert done.exit_code == 0, done.output
    written = read_recipe(str(tmp_path / "out/recipe.toml"))
    assert (written.steps, written.optimizer, written.learning_rate, written.sample) == (
        3,
        "muon",
        3e-3,
        "Once",
    )
    assert "Once" in done.stderr  # the sample of an evaluation
    wrong = CliRunner().invoke(command, [str(text), "--optimizer", "sgd"])
    assert wrong.exit_code == 2 and "'adamw', 'muon'" in wrong.output


def test_the_best_checkpoint_is_kept(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved: list[float] = []
    save = train.save

    def watched(gpt, outcome, *rest):
        saved.append(outcome.val_loss)
        save(gpt, outcome, *rest)

    monkeypatch.setattr(train, "save", watched)
    wild = dataclasses.replace(RECIPE, steps=40, learning_rate=0.3, schedule="constant")
    train.train([text], tmp_path / "out", wild)
    assert saved == sorted(saved, reverse=True)
    source = json.loads((tmp_path / "out/gptx_source.json").read_text())
    assert source["training"]["val_loss"] == saved[-1]


def test_what_a_killed_swap_left_is_set_right(text: Path, tmp_path: Path):
    train.train([text], tmp_path / "out", RECIPE)
    os.rename(
        tmp_path / "out", tmp_path / ".out.0a1b2c3d.old"
    )  # killed between the two renames of the swap
    (tmp_path / ".out.0a1b2c3d.part").mkdir()
    train.train([text], tmp_path / "out", dataclasses.replace(RECIPE, steps=6))
    assert load_config(tmp_path / "out").n_layer == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run", "tales.txt"]


def test_folders_jsonl_and_compressed_files_are_read(tmp_path: Path):
    (tmp_path / "texts").mkdir()
    stories = [f"{STORY}Tale {n} ends.\n" for n in range(40)]
    with gzip.open(tmp_path / "texts/a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"body": story}) + "\n" for story in stories[:20])
    with lzma.open(tmp_path / "texts/b.txt.xz", "wt", encoding="utf-8") as file:
        file.write("<|endoftext|>".join(stories[20:]))
    train.train([tmp_path / "texts"], tmp_path / "out", RECIPE, field="body")
    made = corpus.read(tmp_path / "out.run")
    text = made.tokenizer.decode(
        [*made.train.tolist(), *made.val.tolist()], skip_special_tokens=False
    )
    assert text == "".join(f"{story.strip()}<|endoftext|>" for story in stories)
