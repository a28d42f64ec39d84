"""Can an artifact run on native operators? A manifest in; out, a reason against it or None."""

from __future__ import annotations

from typing import Any

from gptx.artifact.manifest import Manifest

# Why an artifact has no step graph; each is the end of a sentence.
NO_OPTIMUM = "optimum exported the model"
NO_OFFSETS = "native operators take Q4_1 weights only from --to keep"
NO_CONFIG = "its gptx.json has no gpt_config, for instance because optimum exported the model"


def why_no_step_graph(manifest: Manifest) -> str | None:
    """The reason for which no step graph can be added to an artifact; None if one can."""
    if not manifest.raw.get("gpt_config"):
        return NO_CONFIG
    return NO_OFFSETS if _has_offsets(manifest) else None


def _has_offsets(manifest: Manifest) -> bool:
    tensors: Any = (manifest.raw.get("quantization") or {}).get("tensors")
    facts = tensors.values() if isinstance(tensors, dict) else ()
    return any(isinstance(one, dict) and one.get("offsets") for one in facts)
