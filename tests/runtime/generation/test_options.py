"""Type checkers, signatures and the command line know exactly the fields of `Options`."""

from __future__ import annotations

import inspect

import pytest
from click.testing import CliRunner

import gptx
from gptx.cli.run import run
from gptx.generation.option_keywords import Given
from gptx.generation.options import DEFAULTS, SPECS, Options, flags
from gptx.generation.resolve_options import resolve


def test_type_checkers_know_the_same_options() -> None:
    """`Given` has the names of `Options` in the same order, and each type with None added."""
    wider = {
        "stop": "str | Sequence[str]",
        "dry_sequence_breakers": "str | Sequence[str | Sequence[int]]",
        "logit_bias": "Mapping[int, float]",
        "sequence_bias": "Sequence[tuple[Sequence[int], float]]",
        "bad_words_ids": "Sequence[Sequence[int]]",
        "forced_eos_token_id": "int | Sequence[int]",
    }
    expected = {}
    for name in SPECS:
        stored = str(Options.__annotations__[name]).removesuffix(" | None")
        stored = stored.replace("TokenIds", "Sequence[int]")
        expected[name] = f"{wider.get(name, stored)} | None"
    hints = {name: hint.__forward_arg__ for name, hint in Given.__annotations__.items()}
    assert list(hints.items()) == list(expected.items())


@pytest.mark.parametrize(
    "method",
    [
        gptx.Model.generate,
        gptx.Model.stream,
        gptx.Model.summarize,
        gptx.Chat.send,
        gptx.Chat.stream,
    ],
)
def test_signatures_show_every_option(method: object) -> None:
    parameters = inspect.signature(method).parameters  # type: ignore[arg-type]
    assert set(SPECS) <= set(parameters) and "options" not in parameters
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in SPECS)
    assert parameters["top_k"].annotation == "int | None"


def test_the_command_line_has_the_options_and_their_help() -> None:
    help = " ".join(CliRunner().invoke(run, ["--help"]).output.split())
    for name, spec in SPECS.items():
        flag = f"{', '.join(flags(name))} {spec.metavar} {spec.help}"
        assert (flag in help) == spec.on_command_line, flag


def test_signatures_and_types_have_no_default_of_their_own() -> None:
    parameters = inspect.signature(gptx.Model.generate).parameters
    assert {parameters[name].default for name in SPECS} == {None}


def test_the_defaults_are_allowed_and_change_nothing() -> None:
    assert resolve(DEFAULTS, {}, max_new_tokens=None) == Options()
