"""Tables and prose on terminals of different widths: no number, word or path is broken."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import pytest

from builders.gptx_command import Stream, gptx, held
from gptx.cli.next_step import use
from gptx.cli.output import write_next, write_prose
from gptx.cli.table import print_table

HEADER = ("figure", "what it is", "certified", "here")
ROWS = [
    ("perplexity_reference", "perplexity of the reference on the proof text", "79.6086", "79.6086"),
    ("kl_mean", "KL divergence from the reference, nats: mean", "0.00163348", "0.00163349"),
]


def shown(
    print_it: Callable[[], None], columns: int | None, monkeypatch: pytest.MonkeyPatch
) -> str:
    """What standard output gets on a terminal of so many columns; None: in a pipe."""
    stream = Stream(io.BytesIO(), encoding="utf-8")
    stream.terminal = columns is not None
    monkeypatch.setenv("COLUMNS", str(columns or 40))
    monkeypatch.setenv("NO_COLOR", "1")
    with contextlib.redirect_stdout(stream):
        print_it()
    return held(stream).decode()


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 160, None])
@pytest.mark.parametrize("prose", [1, None])
def test_words_and_numbers_stay_whole(
    columns: int | None, prose: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(lambda: print_table(ROWS, header=HEADER, prose=prose), columns, monkeypatch)
    assert {word for row in ROWS for cell in row for word in cell.split()} <= set(text.split())
    if columns is None:
        assert len(text.splitlines()) == 1 + len(ROWS)
    else:
        assert max(map(len, text.splitlines())) <= columns


def test_a_wide_terminal_shows_what_a_pipe_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    def table() -> None:
        print_table(ROWS, title="Certificate", header=HEADER, prose=1)

    assert shown(table, 160, monkeypatch) == shown(table, None, monkeypatch)


def test_a_table_that_does_not_fit_has_a_line_for_each_cell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [("gptx:default_model", "10.7", "302"), ("llamacpp:model.gguf", "12.5", "280")]
    header = ("prompt of 16 tokens", "prefill ms", "decode tok/s")
    text = shown(lambda: print_table(rows, header=header, right=True), 40, monkeypatch)
    assert text.splitlines() == [
        "prompt of 16 tokens",
        "gptx:default_model",
        "  prefill ms    10.7",
        "  decode tok/s  302",
        "llamacpp:model.gguf",
        "  prefill ms    12.5",
        "  decode tok/s  280",
    ]


def test_a_path_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/home/somebody/a-long-name-of-a-folder/and-another-one/smollm2-int8"
    table = shown(lambda: print_table([("file", path)], title="Files", prose=1), 40, monkeypatch)
    assert path in table
    assert path in shown(lambda: write_prose(f"wrote {path} of 3 MB"), 40, monkeypatch)


def test_the_next_command_has_the_device() -> None:
    assert use(None) == 'gptx run "Once upon a time"'
    assert use(None, device="cuda") == 'gptx run "Once upon a time" --device cuda'


def test_a_command_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    command = 'gptx run -m /home/somebody/models/smollm2-int8 --chat "Once upon a time"'
    assert shown(lambda: write_next(command), 40, monkeypatch) == f"next: {command}\n"


@pytest.mark.parametrize("columns", [60, 80, 160])
@pytest.mark.parametrize("verb", ["inspect", "doctor"])
def test_verbs_fit_the_terminal_and_end_with_a_command(
    verb: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    lines = gptx(verb, terminal=True).text.splitlines()
    assert lines[-1] == 'next: gptx run "Once upon a time"'
    assert not [line for line in lines if len(line) > columns and " " in line.strip()[:columns]]
