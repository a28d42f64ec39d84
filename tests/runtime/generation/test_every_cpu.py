"""A seed gives the same draws on every CPU, whatever the options.

numpy and libm choose their exp, log and power by the CPU, and round differently. Where the library
of native operators is there, no option may use them.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptx
from builders.native_graphs import native_kernels, native_operators, needs_library
from gptx.generation.options import SPECS
from gptx.model import Model

# Functions of numpy and math whose bits, or order of equal values, depend on the CPU
FUNCTIONS = [
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logaddexp", "logaddexp2", "pow",
    "power", "float_power", "cbrt", "sinh", "cosh", "tanh", "dot", "vdot", "inner", "matmul",
    "tensordot", "einsum", "argpartition",
]  # fmt: skip
# Each option at a value that does something to the text behind the prompt
PROMPT = [5, 3, 9, 3, 9, 5, 3, 9]
VALUES: dict[str, Any] = {
    "max_new_tokens": 12,
    "min_new_tokens": 4,
    "temperature": 0.8,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.01,
    "typical_p": 0.9,
    "epsilon_cutoff": 1e-3,
    "eta_cutoff": 1e-3,
    "top_h": 0.9,
    "top_n_sigma": 2.5,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.05,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.3,
    "no_repeat_ngram_size": 3,
    "dry_multiplier": 0.8,
    "dry_base": 1.5,
    "dry_allowed_length": 1,
    "dry_sequence_breakers": [[4]],
    "logit_bias": {6: 0.3},
    "sequence_bias": [([9, 5], 0.7)],
    "bad_words_ids": [[9, 4]],
    "suppress_tokens": [8],
    "begin_suppress_tokens": [7],
    "forced_bos_token_id": 3,
    "forced_eos_token_id": 2,
    "exponential_decay_length_penalty": (1, 1.3),
    "guidance_scale": 1.5,
    "num_beams": 3,
    "length_penalty": 0.7,
    "early_stopping": "never",
    "num_return_sequences": 2,
    "seed": 11,
    "stop": ["\n\n"],
    "stop_tokens": [2],
}
ALWAYS = {name: VALUES[name] for name in ("max_new_tokens", "temperature", "seed")}
BEAMS = ("num_beams", "length_penalty", "early_stopping", "num_return_sequences")
DRAWN = {name: value for name, value in VALUES.items() if name not in BEAMS}
TOGETHER = {  # min_p takes one way with top_p, and another without
    "all": DRAWN,
    "all but top_p": {name: value for name, value in DRAWN.items() if name != "top_p"},
}


@pytest.fixture(scope="module")
def model(artifacts: dict[str, Path]) -> Iterator[Model]:
    with native_operators(), gptx.load(artifacts["shared"], threads=1) as opened:
        yield opened


def test_every_option_is_tested() -> None:
    assert VALUES.keys() == SPECS.keys()


def test_no_power_of_floats() -> None:
    """The operator ** cannot be replaced by the test below. For numbers, it is libm's pow."""
    rooms = [Path(gptx.__file__).parent / room for room in ("generation", "engine")]
    for file in (file for room in rooms for file in room.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
                assert isinstance(ast.literal_eval(node.left), int), (file, node.lineno)


@needs_library
@pytest.mark.usefixtures(native_kernels.__name__)
@pytest.mark.parametrize("name", [*VALUES, *TOGETHER])
def test_no_function_that_depends_on_the_cpu(
    model: Model, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TOGETHER[name] if name in TOGETHER else {**ALWAYS, name: VALUES[name]}
    if name.startswith(("dry", "xtc")):
        options |= {one: VALUES[one] for one in ("dry_multiplier", "xtc_probability")}
    if name in BEAMS:
        options = {"max_new_tokens": 12, **{one: VALUES[one] for one in BEAMS}}
    expected = model.generate([PROMPT], top_logprobs=3, **options)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("an option called a function whose bits depend on the CPU")

    for function in FUNCTIONS:
        for module in (np, math):
            monkeypatch.setattr(module, function, refuse, raising=False)
    for found, one in zip(model.generate([PROMPT], top_logprobs=3, **options), expected):
        assert found.token_ids == one.token_ids and found.score == one.score
        assert found.logprobs == one.logprobs and found.top_logprobs == one.top_logprobs
