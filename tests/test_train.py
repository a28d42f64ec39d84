"""gptx train: text to tokens, the loop, resuming, and the checkpoint that comes out, on a model of a few steps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from gptx.errors import CheckpointError, OutputError, UsageError
from gptx_models import data, train
from gptx_models.checkpoint import load_config, load_model
from gptx_models.recipe import Recipe, read_recipe, recipe_names
from gptx_models.train_cli import train as command

STORY = "Once upon a time there was a king who had three daughters, and the youngest was as fair as the day.\n"
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
    file.write_text("<|endoftext|>".join(f"{STORY}Tale {n} ends — here.\n" for n in range(40)), "utf-8")
    return file


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the same sums in the same order each time
    yield
    torch.set_num_threads(before)


def test_trains_and_loads_again(text: Path, tmp_path: Path):
    outcome = train.train([text], tmp_path / "out", RECIPE, licence="cc0-1.0")
    assert (outcome.steps, outcome.tokens) == (6, 6 * 2 * 16)
    config = load_config(tmp_path / "out")
    assert (config.n_layer, config.n_ctx, config.vocab_size) == (1, 16, 300)
    gpt = load_model(tmp_path / "out")
    corpus = train.prepare([text], tmp_path / "out.run", RECIPE)
    assert train.evaluate(gpt, corpus.val, RECIPE) == pytest.approx(outcome.val_loss, rel=1e-6)
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["do_sample"] is True and generation["eos_token_id"] == corpus.end
    source = json.loads((tmp_path / "out/gptx_source.json").read_text())
    assert source["licence"] == "cc0-1.0" and source["training"]["steps"] == 6 and source["recipe"]["seed"] == 1
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "gpt2"


def test_transformers_reads_what_was_trained(text: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    train.train([text], tmp_path / "out", RECIPE)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, load_model(tmp_path / "out")(ids), atol=1e-5, rtol=1e-5)


def test_a_stopped_run_goes_on_with_the_same_losses(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses: dict[str, list[tuple[int, float]]] = {"whole": [], "first": [], "second": []}
    update = train.update

    def run(name: str, stop: int | None = None):
        def watched(gpt, optimizer, inputs, targets, recipe, step):
            if step == stop:
                raise KeyboardInterrupt
            loss = update(gpt, optimizer, inputs, targets, recipe, step)
            losses[name].append((step, loss))
            return loss

        monkeypatch.setattr(train, "update", watched)
        return train.train([text], tmp_path / ("whole" if name == "whole" else "broken"), RECIPE)

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("first", stop=5)
    again = run("second")
    assert losses["first"][:3] + losses["second"] == losses["whole"]  # step 3 was the last that was kept
    assert again.val_loss == whole.val_loss
    for name, value in load_model(tmp_path / "whole").state_dict().items():
        assert torch.equal(value, load_model(tmp_path / "broken").state_dict()[name]), name


def test_a_finished_run_stays_as_it_is(text: Path, tmp_path: Path):
    first = train.train([text], tmp_path / "out", RECIPE)
    again = train.train([text], tmp_path / "out", RECIPE)
    assert (again.steps, again.val_loss) == (first.steps, first.val_loss)


def test_other_texts_are_not_mixed_into_a_run(text: Path, tmp_path: Path):
    train.train([text], tmp_path / "out", RECIPE)
    other = tmp_path / "other.txt"
    other.write_text(text.read_text("utf-8").replace("king", "queen"), "utf-8")
    with pytest.raises(UsageError, match="another texts.*--force"):
        train.train([other], tmp_path / "out", RECIPE)
    train.train([other], tmp_path / "out", RECIPE, force=True)
    assert "queen" in data.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")).decode(
        np.load(tmp_path / "out.run/train.npy").tolist()
    )


def test_a_folder_that_stands_there_is_kept(text: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("{}")
    with pytest.raises(OutputError, match="--force"):
        train.train([text], tmp_path / "out", RECIPE)
    assert not (tmp_path / "out.run").exists()


def test_no_number_for_a_loss_stops_the_run(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train, "loss_of", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(CheckpointError, match="loss is nan at step 0"):
        train.train([text], tmp_path / "out", RECIPE)
    assert not (tmp_path / "out").exists()


def test_a_broken_state_is_named(text: Path, tmp_path: Path):
    train.train([text], tmp_path / "out", RECIPE)
    state = tmp_path / "out.run" / train.STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        train.train([text], tmp_path / "out", RECIPE)


def test_a_state_of_unknown_texts_is_not_gone_on_from(text: Path, tmp_path: Path):
    train.train([text], tmp_path / "out", RECIPE)
    (tmp_path / "out.run/run.json").unlink()
    with pytest.raises(CheckpointError, match="texts are unknown.*--force"):
        train.train([text], tmp_path / "out", RECIPE)


def test_minutes_end_a_run_and_its_schedule(text: Path, tmp_path: Path):
    recipe = Recipe(**{**RECIPE.__dict__, "steps": 10**6, "minutes": 0.01, "eval_every": 10**6})
    outcome = train.train([text], tmp_path / "out", recipe)
    assert 0 < outcome.steps < 10**6 and load_config(tmp_path / "out").n_layer == 1
    rates = [train.learning_rate(step, step / 100, RECIPE) for step in range(101)]
    assert rates[0] == RECIPE.learning_rate / 2 and rates[100] == pytest.approx(RECIPE.learning_rate / 10)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_a_given_tokenizer_is_used(text: Path, tmp_path: Path):
    train.train([text], tmp_path / "first", RECIPE)
    given = tmp_path / "first/tokenizer.json"
    validation = tmp_path / "val.txt"
    validation.write_text(STORY * 3, "utf-8")
    train.train([text], tmp_path / "second", RECIPE, tokenizer=given, validation=validation)
    assert json.loads((tmp_path / "second/tokenizer.json").read_text()) == json.loads(given.read_text())
    val = np.load(tmp_path / "second.run/val.npy")
    assert data.Tokenizer.from_file(str(given)).decode(val.tolist()) == (STORY * 3).strip("\n")


def test_a_start_is_trained_on(text: Path, tmp_path: Path):
    """With a learning rate of nothing the weights stay the start's; a start of another shape is refused."""
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
    documents = ["Ein Märchen: 狐狸 🦊!\n\n  two  spaces", "\ttab"]
    tokenizer = data.train_tokenizer(documents, 300)
    tokens = data.encode(tokenizer, documents)
    assert tokens.dtype == np.uint16
    end = tokenizer.token_to_id(data.END_OF_TEXT)
    assert [tokenizer.decode(part) for part in _split(tokens.tolist(), end)] == documents
    options = {"batch_size": 2, "n_ctx": 8, "seed": 3}
    stream = data.batches(tokens, **options)
    later = [next(stream) for _ in range(3)][2]
    inputs, targets = next(data.batches(tokens, **options, start=2))
    assert torch.equal(inputs, later[0]) and torch.equal(targets, later[1])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


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
        "There once lived an old queen whose husband had been dead for many years, and she had a beautiful daughter."
        " When she grew up she was betrothed to a prince who lived a great way off.",
        "'Who is there?' asked she.",
        "Now the time drew near when she was to be married and to depart into the distant kingdom; then the old queen"
        " packed up many costly things.",
    ]
    verse = "The sun was shining on the sea,\nShining with all his might:\n" * 4
    long = (STORY * 3).replace("\n", " ").strip()
    assert data.prose(f"{long}\n\n{verse}") == f"{long}\n{verse}".strip()  # lines of a page that is not wrapped stay


def test_bad_texts_are_named(tmp_path: Path):
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("\n<|endoftext|>\n")
    latin.write_bytes("Märchen".encode("latin-1"))
    with pytest.raises(UsageError, match="latin.txt is not UTF-8 text: byte 1 is 0xe4"):
        data.read_texts([latin])
    with pytest.raises(UsageError, match="no text in .*empty.txt"):
        data.read_texts([empty])
    with pytest.raises(UsageError, match="nothing.txt is missing"):
        train.train([tmp_path / "nothing.txt"], tmp_path / "out", RECIPE)
    short = tmp_path / "short.txt"
    short.write_text("A king.")
    with pytest.raises(UsageError, match="too few: each must be more than the context of 16"):
        train.train([short], tmp_path / "out", RECIPE)
    assert not (tmp_path / "out").exists()


def test_shipped_recipes_make_models_of_their_size():
    assert {"default", "minute"} <= set(recipe_names())
    for name in recipe_names():
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
    sets = ["steps=2", "eval_every=2", "batch_size=2", "vocab_size=300", "model.n_ctx=16", "model.n_embd=16"]
    options = [option for change in sets for option in ("--set", change)]
    done = CliRunner().invoke(command, [str(text), "--out", str(tmp_path / "tiny"), *options])
    assert done.exit_code == 0, done.output
    assert "step 2: loss" in done.stderr
    assert f"gptx export {tmp_path / 'tiny'} {tmp_path / 'tiny'}-onnx && gptx run" in done.stdout
    assert isinstance(CliRunner().invoke(command, []).exception, UsageError)
