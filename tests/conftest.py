"""Fixtures that several test files use: tiny artifacts of every cache form."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_artifact import write_artifact


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model, three times: cache form -> artifact. Its vocabulary is padded by 3 empty ids."""
    folder = tmp_path_factory.mktemp("artifacts")
    return {
        cache: write_artifact(folder / cache, cache, padding=3, prefill_chunk=8)
        for cache in ("shared", "growing", "scatter")
    }
