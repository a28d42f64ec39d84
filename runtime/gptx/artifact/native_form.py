"""Can an artifact run on native operators? A manifest in; out, a reason against it or None."""

from __future__ import annotations

from gptx.artifact.manifest import Manifest

# Why an artifact has no step graph; each is the end of a sentence.
NO_OPTIMUM = "optimum exported the model"
NO_CONFIG = "its gptx.json has no gpt_config, for instance because optimum exported the model"


def why_no_step_graph(manifest: Manifest) -> str | None:
    """The reason for which no step graph can be added to an artifact; None if one can."""
    return None if manifest.raw.get("gpt_config") else NO_CONFIG
