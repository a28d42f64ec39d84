"""The compiled graph that may lie beside an artifact's portable one: for which machine it is, and whether this is one.

In: a manifest. Out: the graph's path and a sentence when it does not fit. Knows nothing of how it is made (compile.py)
and imports ONNX Runtime only for an artifact that has one.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from gptx import providers
from gptx.artifact import Manifest

# Neither name ends in .onnx: other loaders take every such file in the folder for a graph of theirs
GRAPH, WEIGHTS = "compiled/graph.pb", "compiled/weights.bin"


def facts() -> dict[str, Any]:
    """What gptx.json says of a graph that is compiled here and now."""
    from gptx.cpu import cpu_features, cpu_name  # here: artifacts that are not compiled load without it

    return {
        "graph": GRAPH,
        "weights": WEIGHTS,
        "provider": providers.CPU,
        "onnxruntime": providers.onnxruntime().__version__,
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "cpu_features": cpu_features(),
    }


def path_of(manifest: Manifest) -> Path | None:
    """None for an artifact that is not compiled."""
    return manifest.path / GRAPH if manifest.raw.get("compiled") else None


def misfit(manifest: Manifest, *, device: str) -> str | None:
    """Why the compiled graph of a manifest that has one is not for this machine and device; None where it is."""
    made, here = manifest.raw["compiled"], facts()
    if providers.tries_cuda(device):
        return f"it is for the CPU, and device is {device!r}"
    if made.get("graph") != GRAPH or GRAPH not in manifest.files:
        return "gptx.json describes it in a way that this gptx does not read"
    for field, what in (("onnxruntime", "ONNX Runtime"), ("architecture", "a processor of architecture")):
        if made.get(field) != here[field]:
            return f"it is for {what} {made.get(field)}, and this is {here[field]}"
    then, now = made.get("cpu_features") or [], here["cpu_features"]
    lacking, more = [f for f in then if f not in now], [f for f in now if f not in then]
    if lacking or more:
        words = [f"{what} {', '.join(names)}" for what, names in (("lacks", lacking), ("also has", more)) if names]
        return f"it is for {made.get('cpu')}, and this processor {' and '.join(words)}"
    return None
