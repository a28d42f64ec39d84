"""The samples in docs/explanation/default-model.md, which the default model gives.

`python docs/generator/samples.py` writes them; a test compares them with what it makes. Both need
native operators, whose texts are the same on every processor.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import gptx
from gptx.model import Model

PAGE = Path(__file__).parents[1] / "explanation" / "default-model.md"
TOKENS = 110
PROMPTS = [
    "Once upon a time",
    "Once upon a time there was a little girl who",
    "There was once a poor miller",
    "The old king had three sons",
    "In a dark forest there lived a wolf",
    "One day a fox met a crow.",
    "The princess looked out of the window and saw",
    "A fisherman and his wife lived",
    "Long ago, in a far country,",
    "The giant said to the boy,",
] * 2
START = "\n1. "  # the list stands at the end of the page


def samples() -> str:
    """The numbered list of all samples."""
    with gptx.load() as model:
        return "\n".join(_sample(model, seed, prompt) for seed, prompt in enumerate(PROMPTS))


def _sample(model: Model, seed: int, prompt: str) -> str:
    text = model.generate(prompt, seed=seed, max_new_tokens=TOKENS).text or ""
    lines = " / ".join(f"**{prompt}**{text}".rstrip("\n").split("\n"))
    number = f"{seed + 1}. "
    return (
        textwrap.fill(
            f"{number}{lines} ...",
            100,
            subsequent_indent=" " * len(number),
            break_on_hyphens=False,
        )
        + "\n"
    )


def main() -> None:
    before, start, _ = PAGE.read_text("utf-8").partition(START)
    assert start
    PAGE.write_text(f"{before}\n{samples()}", "utf-8")


if __name__ == "__main__":
    main()
