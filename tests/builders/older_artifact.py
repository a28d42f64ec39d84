"""Artifacts as an older gptx made them: without a step graph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gpt_export.upgrade import FACTS
from gptx.artifact.layout import STEP
from gptx.artifact.manifest import read_manifest
from gptx.parity.reference import Reference
from gptx.parity.seal import seal_of, write_seal


def without_step_graph(artifact: Path, copy: Path) -> Path:
    """A copy of `artifact` that never had a step graph; its seal says the same."""
    shutil.copytree(artifact, copy)
    manifest = read_manifest(copy)
    reference = Reference.load(copy, manifest.model)
    (copy / STEP).unlink(missing_ok=True)
    raw = {key: manifest.raw[key] for key in manifest.raw if key not in FACTS}
    raw["files"] = {name: facts for name, facts in raw["files"].items() if name != STEP}
    raw = write_seal(copy, raw, reference, seal_of(raw))
    (copy / "gptx.json").write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return copy
