"""gptx verify: how it prints a report, and its exit status.

What the report says is tested in tests/runtime/parity/test_verify.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.gptx_command import gptx
from gptx import verify as proving
from gptx.errors import ArtifactError
from gptx.verify import Check, Report, Row

Verify = Callable[..., Report]
GOOD = Row("max_abs", "difference of a logit: largest", 4.2e-05, 4.3e-05, 0.001, ok=True)
TOLD = Row("mean_abs", "difference of a logit: mean", None, 2e-06, None, ok=True)
BAD = Row("kl_mean", "difference of the predictions", 1e-09, float("nan"), 0.01, ok=False)
APART = Row("perplexity", "perplexity of this model", 3.0, 30.0, None, ok=True, differs=True)
FILES = Check("files", "9 files have the listed sizes and hashes", ok=True)


def pretend(
    monkeypatch: pytest.MonkeyPatch, *rows: Row, checks: tuple[Check, ...] = (FILES,)
) -> list[dict[str, object]]:
    calls: list[dict[str, object]] = []

    def verify(
        path: Path, *, device: str, threads: int | None, progress: Callable[[float], None] | None
    ) -> Report:
        calls.append({"path": path, "device": device, "threads": threads})
        if progress is not None:
            progress(0.5)
        return Report(
            checks=[*checks], rows=list(rows), stated={"perplexity": 19.5}, notes=["a note"]
        )

    monkeypatch.setattr(proving, "verify", verify)
    monkeypatch.setattr("gptx.cli.verify.use", lambda path, *, device: f"gptx run -m {path} TEXT")
    return calls


def test_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pretend(monkeypatch, GOOD, TOLD)
    outcome = gptx("verify", "some/where", "--threads", "2")
    assert outcome.status == 0 and outcome.err.startswith("Verifying: ")
    lines = [line.split() for line in outcome.text.splitlines() if line]
    assert lines[:3] == [
        ["Checked"],
        ["files", *FILES.what.split(), "ok"],
        ["figure", "what", "it", "is", "certified", "here", "limit"],
    ]
    assert lines[3] == ["max_abs", *GOOD.what.split(), "4.2e-05", "4.3e-05", "0.001", "ok"]
    # A figure without a limit is neither ok nor failed.
    assert lines[4] == ["mean_abs", *TOLD.what.split(), "2e-06"]
    said = outcome.text.splitlines()
    assert (
        "stated by gptx.json for the whole proof text, and not proved here: perplexity 19.5" in said
    )
    assert said[-3:] == [
        "a note",
        "some/where: proved on this machine",
        "next: gptx run -m some/where TEXT",
    ]
    assert calls == [{"path": Path("some/where"), "device": "cpu", "threads": 2}]


def test_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, GOOD, BAD)
    outcome = gptx("verify", "some/where")
    assert outcome.status == 1
    assert (
        "FAILED" in outcome.text
        and "some/where: not proved on this machine (kl_mean)" in outcome.text
    )
    assert "FAILED" in gptx("verify", "some/where", terminal=True).text


def test_a_failed_check_and_a_figure_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, GOOD, checks=(FILES, Check("weights", "one holds 3 NaN values", ok=False)))
    outcome = gptx("verify", "some/where")
    assert (
        outcome.status == 1 and "some/where: not proved on this machine (weights)" in outcome.text
    )
    pretend(monkeypatch, GOOD, APART)
    outcome = gptx("verify", "some/where")
    assert outcome.status == 0 and ["3", "30", "differs"] in [
        line.split()[-3:] for line in outcome.text.splitlines()
    ]
    assert (
        "some/where: within its limits on this machine, but not what its certificate says"
        " (perplexity)" in outcome.text.splitlines()
    )


def test_json_and_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, BAD)
    outcome = gptx("verify", "some/where", "--json")
    facts = json.loads(outcome.text)
    assert (outcome.status, facts["passed"], facts["artifact"]) == (1, False, "some/where")
    (row,) = facts["rows"]
    assert (row["name"], row["certified"], row["here"], row["limit"]) == (
        "kl_mean",
        1e-09,
        None,
        0.01,
    )  # numbers
    assert facts["notes"] == ["a note"] and facts["checks"][0]["ok"] is True
    quiet = gptx("verify", "some/where", "--quiet")
    assert (quiet.status, quiet.out, quiet.err) == (1, b"", "")


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_a_terminal_of_any_width_keeps_words_whole(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    pretend(monkeypatch, GOOD, BAD, APART)
    shown = re.sub(r"\x1b\[[\d;]*m", "", gptx("verify", "some/where", terminal=True).text)
    assert all(
        word in shown.split()
        for row in (GOOD, BAD, APART)
        for word in (row.name, *row.what.split())
    )
    assert max(map(len, shown.splitlines())) <= columns


def test_without_an_artifact_the_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptx.model import DEFAULT_MODEL

    calls = pretend(monkeypatch, GOOD)
    gptx("verify")
    assert calls[0]["path"] == DEFAULT_MODEL


def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(path: Path, **_: object) -> Report:
        raise ArtifactError(f"{path} was changed after it was made")

    monkeypatch.setattr(proving, "verify", verify)
    outcome = gptx("verify", "some/where")
    assert (outcome.status, outcome.out) == (
        1,
        b"",
    ) and outcome.err == "gptx: some/where was changed after it was made\n"
