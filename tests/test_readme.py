"""README's first screen: each gptx line runs as it is printed, on a tiny GGUF file of the same name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gptx.cli import VERBS
from gptx_command import gptx
from test_import_gguf import Q, byte_level_vocabulary, llama, write_llama

README = (Path(__file__).parents[1] / "README.md").read_text()


def write_gguf(path: Path) -> None:
    """A random llama of one layer, whose chat template and tokenizer lie in the file, with weights in Q4_1."""
    tokens, merges = byte_level_vocabulary()
    model = llama(vocab_size=len(tokens) + 1, num_attention_heads=4, num_key_value_heads=2)
    for parameter in model.parameters():
        parameter.data *= 0.3  # near uniform logits: rounding to 8 bits stays inside its limit
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
    """The arguments of each `gptx ...` line that stands indented in a section, its trailing comment left out."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0].split("What these print")[0]
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (gptx .*)$", text, re.M)]


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


def test_every_verb_stands_in_the_readme() -> None:
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", README), verb
