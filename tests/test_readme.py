"""Each gptx command of README.md runs as it is printed, on a tiny GGUF file of the same name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from builders.gguf_files import Q, byte_level_vocabulary, llama, write_llama
from builders.gptx_command import gptx
from gptx.cli import VERBS, group

README = (Path(__file__).parents[1] / "README.md").read_text()


def write_gguf(path: Path) -> None:
    """A random llama of one layer in Q4_1, with tokenizer and chat template in the file."""
    tokens, merges = byte_level_vocabulary()
    model = llama(vocab_size=len(tokens) + 1, num_attention_heads=4, num_key_value_heads=2)
    for parameter in model.parameters():
        parameter.data *= 0.3  # nearly uniform logits, so that 8 bits stay inside the limit
    write_llama(
        path,
        model,
        Q.Q4_1,
        tokenizer_model="gpt2",
        tokenizer_pre="smollm",
        token_list=["<|end|>", *tokens],
        token_types=[3, *[1] * len(tokens)],
        token_merges=merges,
        eos_token_id=0,
        chat_template="{% for m in messages %}{{ m.content }}\n{% endfor %}",
    )


def commands(section: str) -> list[list[str]]:
    """Arguments of each indented `gptx ...` line of a section, without comments."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0].split("What these print")[0]
    return [
        shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (gptx .*)$", text, re.M)
    ]


def test_the_chain_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_gguf(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf")
    lines = commands("From a checkpoint to an answer")
    assert [line[0] for line in lines] == ["import", "export", "quantize", "run", "verify"]
    for line in lines:
        outcome = gptx(*line)
        assert outcome.status == 0, (line, outcome.err)


def test_the_default_model_runs_as_printed() -> None:
    (line,) = re.findall(r"&& (gptx run .*?)  +#", README)
    outcome = gptx(*shlex.split(line)[1:])
    assert outcome.status == 0 and len(outcome.text) > 10


def code() -> list[str]:
    """Indented lines and text in backticks, where commands are."""
    fenced = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    return [*re.findall(r"^    (.*)$", fenced, re.MULTILINE), *re.findall(r"`([^`\n]+)`", fenced)]


def table() -> list[tuple[list[str], str]]:
    """Rows of the command line's table, by verb."""
    rows = [row for row in README.splitlines() if row.startswith("| `gptx ")]
    return [
        (re.findall(r"`(?:gptx )?(?!gptx)([a-z]+)[ `]", row.split(" | ")[0]), row) for row in rows
    ]


def options_of(verb: str) -> set[str]:
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    return {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }


def test_every_verb_has_its_place_in_the_table() -> None:
    assert sorted(verb for verbs, _ in table() for verb in verbs) == sorted(VERBS)


def test_every_option_that_the_readme_names_is_one() -> None:
    lines = [(re.findall(r"\bgptx ([a-z]+)", line)[:1], line) for line in code()]
    alone = [(list(VERBS), line) for verbs, line in lines if not verbs and line.startswith("--")]
    of_a_verb = [(verbs, line.partition("gptx ")[2]) for verbs, line in lines if verbs]
    assert len(alone) > 3 and len(of_a_verb) > 12
    for verbs, line in [*alone, *of_a_verb, *table()]:
        known = {"--help", "--version"}.union(*map(options_of, verbs))
        assert set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", line)) <= known, (verbs, line)
