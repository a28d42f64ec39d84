"""Open the model of gptx run and gptx chat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import gptx
from gptx.generation.option_keywords import Keywords

if TYPE_CHECKING:
    from gptx.model import Model


def open_model(
    artifact: Path | None,
    *,
    device: str,
    threads: int | None,
    draft: Path | None,
    sampling: Keywords,
) -> Model:
    """The model of a command, with as many rows as its text has beams."""
    from gptx.engine.loaded_model import MAX_ROWS

    beams = sampling.get("num_beams") or 1
    rows = beams if MAX_ROWS < beams <= 1024 else MAX_ROWS
    return gptx.load(artifact, device=device, threads=threads, draft=draft, max_rows=rows)
