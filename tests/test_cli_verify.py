"""gptx verify: how a report is printed and what the exit status says; the proof itself is tested elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gptx import verify as proving
from gptx.errors import ArtifactError
from gptx.verify import Report, Row
from gptx_command import gptx

Verify = Callable[..., Report]
GOOD = Row("max_abs", "4.2e-05", "4.3e-05", "0.001", True)
TOLD = Row("mean_abs", "1e-06", "2e-06", "", True)
BAD = Row("kl_mean", "1e-09", "0.5", "0.01", False)


def pretend(monkeypatch: pytest.MonkeyPatch, *rows: Row) -> list[dict[str, object]]:
    calls: list[dict[str, object]] = []

    def verify(path: Path, *, device: str, threads: int | None, progress: Callable[[float], None] | None) -> Report:
        calls.append({"path": path, "device": device, "threads": threads})
        if progress is not None:
            progress(0.5)
        return Report(rows=list(rows), notes=["ran on CPUExecutionProvider"])

    monkeypatch.setattr(proving, "verify", verify)
    return calls


def test_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pretend(monkeypatch, GOOD, TOLD)
    outcome = gptx("verify", "some/where", "--threads", "2")
    assert outcome.status == 0 and outcome.err.startswith("Verifying: ")
    lines = outcome.text.splitlines()
    assert lines[0].split() == ["figure", "certified", "here", "limit"]
    assert lines[1].split() == ["max_abs", "4.2e-05", "4.3e-05", "0.001", "ok"]
    assert lines[2].split() == ["mean_abs", "1e-06", "2e-06"]  # has no limit, so it is neither ok nor failed
    assert lines[3:] == ["ran on CPUExecutionProvider", "some/where: proved on this machine"]
    assert calls == [{"path": Path("some/where"), "device": "cpu", "threads": 2}]


def test_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, GOOD, BAD)
    outcome = gptx("verify", "some/where")
    assert outcome.status == 1
    assert "FAILED" in outcome.text and "some/where: outside its limits here (kl_mean)" in outcome.text
    assert "FAILED" in gptx("verify", "some/where", terminal=True).text


def test_json_and_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, BAD)
    outcome = gptx("verify", "some/where", "--json")
    facts = json.loads(outcome.text)
    assert (outcome.status, facts["passed"], facts["artifact"]) == (1, False, "some/where")
    assert facts["rows"][0]["name"] == "kl_mean" and facts["notes"] == ["ran on CPUExecutionProvider"]
    quiet = gptx("verify", "some/where", "--quiet")
    assert (quiet.status, quiet.out, quiet.err) == (1, b"", "")


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
