"""Progress of long work is printed as plain lines if standard error is no terminal."""

from __future__ import annotations

import pytest

from gptx import progress


def test_a_long_stage_prints_a_line_each_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 30.0, 61.0, 90.0, 150.0, 151.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    with progress.stage("Training", total=8.0) as advance:
        advance(1)  # 30 s: too early for a line
        advance(1, "step 2")
        advance(1, "step 3")  # 29 s after that line
        advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "Training: 25% after 61 s, step 2",
        "Training: 50% after 150 s, step 3",
        "Training: 151.0 s",
    ]


def test_a_stage_of_unknown_length_and_a_quiet_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress.stage("Reading") as advance:
        advance(1)
    assert capsys.readouterr().err.startswith("Reading: 0 s\nReading: 0.0 s")
    with progress.stage("Reading", quiet=True) as advance:
        advance(1)
    assert capsys.readouterr().err == ""
