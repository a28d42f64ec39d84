"""Messages of gptx train and finetune, options that are refused, and how --set is read."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from builders.exported import CONFIG, write_checkpoint
from gptx import progress
from gptx.errors import UsageError
from gptx_models.cli.finetune import finetune
from gptx_models.cli.train import train as train_command
from gptx_models.training import train
from gptx_models.training.metrics_log import MetricsLog, MetricsRow
from gptx_models.training.recipe import Recipe, changed, read_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = Recipe(
    model={"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16},
    steps=6,
    vocab_size=300,
    batch_size=2,
    eval_every=3,
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("training") / "tales.txt"
    file.write_text(
        "".join(f"The youngest daughter was as fair as day {n}.\n" for n in range(60)), "utf-8"
    )
    return file


@pytest.fixture(scope="module")
def finished(text: Path) -> Path:
    """The output of a run that has ended."""
    train.train([text], text.parent / "finished", RECIPE)
    return text.parent / "finished"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rate": 0.5}, "learning_rate 0.001 instead of 0.5"),
        ({"seed": 2, "batch_size": 4}, "batch_size 2 instead of 4, seed 1 instead of 2"),
        ({"schedule": "wsd"}, 'schedule "cosine" instead of "wsd"'),
        ({"model": {**RECIPE.model, "n_layer": 2}}, "another model"),
        ({"vocab_size": 290}, "another vocab size"),
        ({"prose": True}, "other texts, prose false instead of true"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(
    change: dict[str, Any], says: str, text: Path, finished: Path
) -> None:
    before = (finished / "model.safetensors").read_bytes()
    with pytest.raises(
        UsageError, match=f"{re.escape(says)}: choose another --out, or begin again with --force"
    ):
        train.train([text], finished, dataclasses.replace(RECIPE, **change))
    assert (finished / "model.safetensors").read_bytes() == before


def test_a_run_goes_on_longer_and_says_so(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.train([text], tmp_path / "out", RECIPE)
    capsys.readouterr()
    longer = train.train(
        [text], tmp_path / "out", dataclasses.replace(RECIPE, steps=9, minutes=5.0)
    )
    said = capsys.readouterr().err
    assert longer.steps == 9 and "going on with steps 9 instead of 6\n" in said
    assert "going on with minutes 5.0 instead of none\n" in said
    train.train([text], tmp_path / "out", dataclasses.replace(RECIPE, steps=9, minutes=5.0))
    assert "going on with" not in capsys.readouterr().err


def test_a_finished_run_says_that_nothing_is_left(
    text: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    outcome = train.train([text], finished, RECIPE)
    assert (
        "nothing is left to do: the run ended at step 6; --force begins again\n"
        in capsys.readouterr().err
    )
    assert re.fullmatch(r"validation \d\.\d{4} \(\d\.\d{4} bits a byte\)", str(outcome))


@pytest.mark.parametrize("minutes", [float("inf"), 1e-9])
def test_progress_names_the_step_that_its_share_is_of(
    minutes: float,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    train.train([text], tmp_path / "out", dataclasses.replace(RECIPE, minutes=minutes))
    said = re.findall(r"Training: (\d+)% after \d+ s, step (\d+)", capsys.readouterr().err)
    assert said and all(int(share) <= 100 for share, _ in said)
    if minutes > 1:
        assert said == [(f"{step / 6 * 100:.0f}", str(step)) for step in range(1, 7)]


def test_one_point_is_drawn_without_a_warning(tmp_path: Path) -> None:
    curve = MetricsLog(tmp_path, done=0)
    curve.add(MetricsRow(1, 100, 1.0, 1e-3, 2.5, 1.0, val_loss=2.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve.draw()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("model.attention=additive", {"model": {"attention": "additive"}}),
        ("model.position=none", {"model": {"position": "none"}}),
        ("model.window=none", {"model": {"window": None}}),
        ("model.norm = 'rmsnorm'", {"model": {"norm": "rmsnorm"}}),
        ("sample=Once upon a time", {"sample": "Once upon a time"}),
        ("learning_rate=1e-3", {"learning_rate": 1e-3}),
        ("learning_rate=.5", {"learning_rate": 0.5}),
        ("steps=007", {"steps": 7}),
        ("compile=True", {"compile": True}),
        ("compile=FALSE", {"compile": False}),
        ("generation.stop_strings=['a', 'b']", {"generation": {"stop_strings": ["a", "b"]}}),
    ],
)
def test_a_setting_is_read_as_people_type_it(change: str, expected: dict[str, Any]) -> None:
    assert changed([change]) == expected


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model.attention", "--set model.attention is not NAME=VALUE"),
        ("=5", "--set =5 is not NAME=VALUE"),
        ("steps=", "--set steps= is not NAME=VALUE"),
        ("model.window=[1,", "is not NAME=VALUE"),
        ("my steps=5", "is not NAME=VALUE"),
        ("optim.lr=1", "unknown: optim"),
        ("model=3", "model is 3, expected a table"),
        ("steps=soon", "steps is 'soon', expected a positive integer"),
        ("vocab_size=10", "vocab_size is 10, expected an integer of 257 or more"),
        ("minutes=0", "minutes is 0, expected a number over 0"),
        ("learning_rate=nan", "learning_rate is nan, expected a number of 0 or more"),
        ("learning_rate=inf", "learning_rate is inf, expected a number of 0 or more"),
        ("weight_decay=inf", "weight_decay is inf, expected a number of 0 or more"),
        ("beta2=1.0", "beta2 is 1.0, expected a number from 0 to 1, 1 excluded"),
        ("decay=2", "decay is 2, expected a number from 0 to 1"),
        ("floor=3", "floor is 3, expected a number from 0 to 1"),
        ("clip=0", "clip is 0, expected a number over 0"),
        ("seed=4294967296", "seed is 4294967296, expected an integer from 0 to 2**32 - 1"),
        (f"weight_decay={10**400}", "expected a number of 0 or more, at most 1e300"),
        ("clip=" + "9" * 400, "expected a number over 0 (inf: no limit)"),
        ("steps=" + "9" * 5000, "steps is inf, expected a positive integer"),
        (f"warmup={10**400}", "expected an integer of 0 or more, below 2**63"),
        (f"batch_size={10**400}", "expected a positive integer of at most 2**24"),
        (
            "generation.seed=1979-05-27",
            "[generation] holds what JSON cannot hold: Object of type date",
        ),
        ("model.rope_theta=inf", "[model] holds what JSON cannot hold: Out of range float"),
        ("x=" + "[" * 3000, "is not NAME=VALUE"),
        (
            "generation.temprature=1",
            "generation.temprature: no such field in generation_config.json",
        ),
        (
            "generation.temperature=hot",
            "[generation]: temperature is 'hot', expected 0 (greedy) or more",
        ),
    ],
)
def test_a_setting_that_is_none_is_one_sentence(change: str, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        read_recipe("minute", [change])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            "--tokenizer t.json --vocab-size 300",
            "--vocab-size is of a new tokenizer, and --tokenizer gives one",
        ),
        (
            "--tokenizer t.json --set vocab_size=300",
            "--vocab-size is of a new tokenizer, and --tokenizer gives one",
        ),
        (
            "--schedule cosine --decay 0.3",
            "decay is a setting of the schedule wsd, and this one is cosine",
        ),
        ("--schedule constant --floor 0.3", "floor is a setting of the schedule wsd and cosine"),
        ("--field body", "--field names a field of JSONL files, and there is none"),
        ("--steps 4 --set steps=5", "--set steps=5 and --steps 4 are two values"),
        ("--batch-size 4 --accumulate 3", "batch_size 4 does not divide into 3 pieces"),
        ("--validation missing.txt", "missing.txt is missing"),
        ("--validation /dev/null", "/dev/null is of an unknown kind"),
        ("--set model.n_ctx=9999", "tokens to train on and"),
    ],
)
def test_options_of_train_that_do_nothing_are_refused(
    options: str, says: str, text: Path, tmp_path: Path
) -> None:
    refused = CliRunner().invoke(
        train_command, [str(text), "--out", str(tmp_path / "out"), *options.split()]
    )
    assert isinstance(refused.exception, UsageError) and says in str(refused.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", ["missing.txt", "TEXT --accumulate 3"])
def test_force_removes_nothing_for_a_run_that_cannot_begin(
    options: str, text: Path, finished: Path
) -> None:
    def state() -> dict[str, bytes]:
        return {
            file.name: file.read_bytes()
            for file in finished.with_name("finished.run").iterdir()
            if file.is_file()
        }

    before = state()
    refused = CliRunner().invoke(
        train_command,
        [*options.replace("TEXT", str(text)).split(), "--out", str(finished), "--force"],
    )
    assert isinstance(refused.exception, UsageError) and state() == before


def test_a_run_that_ended_takes_other_generation_settings_and_licence(
    text: Path, tmp_path: Path
) -> None:
    """They need no step to be heard."""
    train.train([text], tmp_path / "out", dataclasses.replace(RECIPE, steps=1))
    ended = dataclasses.replace(RECIPE, steps=1, generation={"top_k": 7})
    train.train([text], tmp_path / "out", ended, licence="cc0-1.0")
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["top_k"] == 7
    assert json.loads((tmp_path / "out/gptx_source.json").read_text())["licence"] == "cc0-1.0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.run"]


def test_what_train_says_last_can_be_pasted(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = "--steps 1 --batch-size 2 --vocab-size 300"
    shape += " --set model.n_layer=1 --set model.n_embd=16 --set model.n_ctx=16"
    done = CliRunner().invoke(
        train_command, [str(text), "--out", "my tales", "--sample", "- it's", *shape.split()]
    )
    assert done.exit_code == 0, done.exception
    export, run = (
        shlex.split(part)
        for part in done.stdout.splitlines()[-1].removeprefix("next: ").split(" && ")
    )
    assert export == ["gptx", "export", "my tales", "my tales-onnx"]
    assert run == ["gptx", "run", "-m", "my tales-onnx", "--", "- it's"]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    file = tmp_path / "reviews.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"a day {n}", "label": "ab"[n % 2]}) + "\n" for n in range(30))
    )
    return file


def tune(base: Path, data: Path, out: Path, options: str) -> Any:
    usual = "--batch-size 4 --device cpu --precision fp32 --context 32"
    return CliRunner().invoke(
        finetune, [str(base), str(data), "--out", str(out), *usual.split(), *options.split()]
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--task classify --vocab-size 400", "gptx finetune does not read vocab_size"),
        (
            "--task classify --set vocab_size=400 --sample x",
            "gptx finetune does not read vocab_size, sample",
        ),
        ("--task classify --prose", "gptx finetune does not read prose"),
        ("--task classify --eval-tokens 9", "gptx finetune does not read eval_tokens"),
        (
            "--task classify --rank 4 --lora-dropout 0",
            "--rank, --lora-dropout is of a LoRA adapter",
        ),
        ("--task classify --epochs 1 --steps 4", "--epochs and --steps both say how long"),
        ("--task classify --epochs 1 --set steps=4", "--epochs and --steps both say how long"),
        ("--task classify --context 1000", "--context is 1000, and"),
        ("--task classify --decay 0.1", "decay is a setting of the schedule wsd"),
        ("--task text --judge 5", "--judge takes examples out of records"),
        ("--task text --template {text}", "--template asks for an answer"),
        ("--task chat --template {text}", "--template asks for an answer"),
    ],
)
def test_options_of_finetune_that_do_nothing_are_refused(
    options: str, says: str, checkpoint: Path, reviews: Path, tmp_path: Path
) -> None:
    refused = tune(checkpoint, reviews, tmp_path / "out", options)
    assert isinstance(refused.exception, UsageError) and says in str(refused.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.jsonl"]


def test_a_classifier_is_fine_tuned_as_one(reviews: Path, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", dataclasses.replace(CONFIG, n_class=3))
    refused = tune(base, reviews, tmp_path / "out", "--task classify")
    assert isinstance(refused.exception, UsageError) and "--task classify --head" in str(
        refused.exception
    )
    assert tune(base, reviews, tmp_path / "out", "--task classify --head --steps 1").exit_code == 0


def test_a_small_adapter_is_small_and_readable(
    checkpoint: Path, reviews: Path, tmp_path: Path
) -> None:
    """The state of a run lacks the frozen weights, also the tied head, a second name of one."""
    options = "--task classify --lora --rank 2 --steps 2 --warmup 1"
    options += " --set learning_rate=1e-9 --set generation.top_k=7"
    done = tune(checkpoint, reviews, tmp_path / "out", options)
    assert done.exit_code == 0, done.output
    state = torch.load(tmp_path / "out.run/state.pt", weights_only=True)
    assert {name.split(".")[-2] for name in state["model"]} == {"a", "b"}
    assert (
        re.search(r"out: [\d,]+ tokens in 0\.\d min, loss \d", done.stdout)
        and "M tokens" not in done.stdout
    )
    assert re.search(r"out\.run \(\d\.\d MB\) is needed only to go on", done.stdout)
    mask = os.umask(0)
    os.umask(mask)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~mask)
    written = read_recipe(str(tmp_path / "out/recipe.toml"))
    assert (written.learning_rate, written.warmup) == (1e-9, 1)
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["top_k"] == 7
    other = tune(checkpoint, reviews, tmp_path / "out", options.replace("1e-9", "1e-8"))
    assert "learning_rate 1e-09 instead of 1e-08" in str(other.exception)


def test_a_run_with_lora_targets_goes_on(checkpoint: Path, reviews: Path, tmp_path: Path) -> None:
    options = "--task classify --lora --targets c_attn,c_fc --steps"
    assert tune(checkpoint, reviews, tmp_path / "out", f"{options} 1").exit_code == 0
    again = tune(checkpoint, reviews, tmp_path / "out", f"{options} 2")
    assert again.exit_code == 0, again.exception
    assert (
        "going on with steps 2 instead of 1" in again.stderr
        and "going on from step 1" in again.stderr
    )
