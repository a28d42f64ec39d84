"""gptx finetune on tasks that a tiny model can learn: the metrics, the checkpoint, the adapter."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from gptx.artifact.task import read_task
from gptx.errors import UsageError
from gptx_models.checkpoints.checkpoint import load_config, load_model
from gptx_models.cli.finetune import finetune
from gptx_models.evaluation.classify import label_scores
from gptx_models.evaluation.torch_generate import greedy
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT
from gptx_models.training import train
from gptx_models.training.recipe import Recipe, read_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

GOOD, BAD = ("bright", "merry", "fine"), ("grim", "dull", "sour")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    text = folder / "text.txt"
    text.write_text(
        "".join(f"{r['text']} {r['label']}\nLabel: Text: Summary:\n" for r in reviews(300)), "utf-8"
    )
    recipe = Recipe(
        model={"n_layer": 2, "n_head": 2, "n_embd": 32, "n_ctx": 48},
        steps=200,
        vocab_size=400,
        batch_size=8,
        warmup=3,
    )
    train.train([text], folder / "base", recipe)
    return folder / "base"


def reviews(count: int) -> list[dict[str, str]]:
    draw = random.Random(count)
    words = [(word, "good") for word in GOOD] + [(word, "bad") for word in BAD]
    chosen = [draw.choice(words) for _ in range(count)]
    return [{"text": f"In May it was {word}", "label": label} for word, label in chosen]


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def run(base: Path, files: Path, out: Path, options: str):
    settings = "--batch-size 8 --device cpu --learning-rate 3e-3 --precision fp32"
    return CliRunner().invoke(
        finetune, [str(base), str(files), "--out", str(out), *f"{settings} {options}".split()]
    )


def figures(output: str) -> dict[str, tuple[float, float]]:
    lines = [line.split() for line in output.splitlines() if " before, " in line]
    return {line[0].rstrip(":"): (float(line[1]), float(line[3])) for line in lines}


@pytest.mark.parametrize(
    "how",
    [
        "",
        "--head --lora --targets all-linear",
        pytest.param("--head", marks=pytest.mark.wide),
        pytest.param("--lora --targets all-linear --rank 4", marks=pytest.mark.wide),
    ],
)
def test_learns_to_classify(how: str, base: Path, tmp_path: Path):
    data = write(tmp_path / "reviews.jsonl", reviews(200))
    done = run(base, data, tmp_path / "out", f"--task classify --epochs 12 {how}")
    assert done.exit_code == 0, done.output
    found = figures(done.output)
    assert found["accuracy"][1] > 0.95 > found["accuracy"][0] and found["macro_f1"][1] > 0.95
    task = read_task(tmp_path / "out")
    assert task and task.labels == ("bad", "good") and task.head == ("--head" in how)
    if "--lora" in how:
        adapter = json.loads((tmp_path / "out/adapter_config.json").read_text())
        assert adapter["peft_type"] == "LORA" and not (tmp_path / "out/model.safetensors").exists()
    else:
        assert load_model(tmp_path / "out").config.vocab_size == load_config(base).vocab_size


def test_learns_to_summarize(base: Path, tmp_path: Path):
    records = [{"document": f"{r['text']}", "summary": [r["label"], "x"]} for r in reviews(160)]
    data = write(tmp_path / "texts.jsonl", records)
    done = run(base, data, tmp_path / "out", "--task summarize --epochs 12 --judge 12")
    assert done.exit_code == 0, done.output
    assert figures(done.output)["rouge1"][1] > 0.9 > figures(done.output)["rouge1"][0]


def test_only_the_answer_is_in_the_loss(base: Path, tmp_path: Path):
    """Prompts are noise that nothing can predict and all answers are equal: the loss goes to 0."""
    draw = random.Random(0)
    records = [{"prompt": f"{draw.random()}", "completion": " good"} for _ in range(120)]
    done = run(
        base,
        write(tmp_path / "pairs.jsonl", records),
        tmp_path / "out",
        "--task completion --epochs 8",
    )
    assert done.exit_code == 0, done.output
    before, after = figures(done.output)["perplexity"]
    assert before > 5 and after < 1.1


def test_goes_on_with_text(base: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("A grim day in May is a fine day in May.\n" * 200, "utf-8")
    done = run(base, text, tmp_path / "out", "--task text --epochs 4 --context 24")
    assert done.exit_code == 0, done.output
    before, after = figures(done.output)["perplexity"]
    assert after < 0.5 * before
    assert read_recipe(str(tmp_path / "out/recipe.toml")).learning_rate == 3e-3
    source = json.loads((tmp_path / "out/gptx_source.json").read_text())
    assert source["format"] == "gptx-finetune" and source["base"]["format"] == "gptx-train"
    assert source["before"]["perplexity"] == pytest.approx(before, abs=1e-3)


def test_chat_needs_a_template(base: Path, tmp_path: Path):
    turns = [
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "A fine day."},
            ]
        }
    ] * 20
    data = write(tmp_path / "chats.jsonl", turns)
    refused = run(base, data, tmp_path / "out", "--task chat")
    assert isinstance(refused.exception, UsageError) and "no chat template" in str(
        refused.exception
    )
    turn = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template = turn + "{% if add_generation_prompt %}assistant: {% endif %}"
    chatty = tmp_path / "chatty"
    chatty.mkdir()
    for file in base.iterdir():
        (chatty / file.name).write_bytes(file.read_bytes())
    (chatty / "chat_template.jinja").write_text(template)
    done = run(chatty, data, tmp_path / "out", "--task chat --epochs 40")
    assert done.exit_code == 0, done.output
    assert figures(done.output)["perplexity"][1] < 1.5
    assert (tmp_path / "out/chat_template.jinja").read_text() == template


def test_a_finished_run_stays_and_another_is_refused(base: Path, tmp_path: Path):
    data = write(tmp_path / "reviews.jsonl", reviews(40))
    run(base, data, tmp_path / "out", "--task classify --epochs 1")
    first = load_file(tmp_path / "out/model.safetensors")
    again = run(base, data, tmp_path / "out", "--task classify --epochs 1")
    assert again.exit_code == 0 and "going on from step" in again.stderr
    assert all(
        torch.equal(load_file(tmp_path / "out/model.safetensors")[name], first[name])
        for name in first
    )
    other = run(
        base,
        write(tmp_path / "other.jsonl", reviews(41)),
        tmp_path / "out",
        "--task classify --epochs 1",
    )
    assert "other files" in str(other.exception) and "--force" in str(other.exception)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--task summarize", "summarize needs"),
        ("--task completion --head", "--head classifies"),
        ("--task classify --set model.n_layer=3", "only model.dropout can be set"),
        ("--task classify --lora --targets q_proj", "no module is called q_proj"),
        ("--task classify --template Label:", "expected once"),
        ("--task classify --fields sentence=text", "classify knows"),
    ],
)
def test_what_does_not_fit_is_named(options: str, says: str, base: Path, tmp_path: Path):
    data = write(tmp_path / "reviews.jsonl", reviews(20))
    refused = run(base, data, tmp_path / "out", options)
    assert isinstance(refused.exception, UsageError) and says in str(refused.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.jsonl"]


def test_the_base_is_not_its_own_output(base: Path, tmp_path: Path):
    data = write(tmp_path / "reviews.jsonl", reviews(20))
    refused = run(base, data, base, "--task classify --force")
    assert isinstance(refused.exception, UsageError) and (base / "config.json").exists()


@pytest.fixture
def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=40, n_layer=2, n_head=2, n_embd=16, n_ctx=32)).eval()


def test_label_scores_are_those_of_the_whole_row(gpt: GPT):
    prompt, labels = [3, 14, 15, 9], [[2], [6, 5, 3], [5, 8]]
    for label, score in zip(labels, label_scores(gpt, prompt, labels)):
        with torch.no_grad():
            logprobs = gpt(torch.tensor([prompt + label])).log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = sum(logprobs[at, token] for at, token in enumerate(label))
        torch.testing.assert_close(score, expected)


def test_greedy_in_a_batch_is_greedy_alone(gpt: GPT):
    prompts = [[3, 14, 15, 9, 2], [6], [5, 3, 5]]
    together = list(greedy(gpt, prompts, n_tokens=8, ends=[]))
    alone = [next(greedy(gpt, [prompt], n_tokens=8, ends=[])) for prompt in prompts]
    assert together == alone
    ids = list(prompts[0])
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(gpt(torch.tensor([ids]))[0, -1].argmax()))
    assert together[0] == ids[5:]
    end = together[0][3]
    cut = next(greedy(gpt, [prompts[0]], n_tokens=8, ends=[end]))
    assert cut == together[0][: together[0].index(end)]
