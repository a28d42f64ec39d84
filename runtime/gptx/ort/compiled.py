"""The compiled graphs that may lie beside an artifact's portable ones: for which machine they are, and whether this is one.

In: a manifest. Out: the graphs' paths and a sentence when they do not fit. Knows nothing of how it is made (compile.py)
and imports ONNX Runtime only for an artifact that has one.
"""

from __future__ import annotations

import platform
from typing import Any

from gptx.artifact.manifest import Manifest
from gptx.ort import providers

# No name ends in .onnx: other loaders take every such file in the folder for a graph of theirs
GRAPH, WEIGHTS = "compiled/graph.pb", "compiled/weights.bin"
DECODE, DECODE_WEIGHTS = (
    "compiled/decode.pb",
    "compiled/decode.bin",
)  # of onnx/decode.onnx, where there is one
FILES = (GRAPH, WEIGHTS, DECODE, DECODE_WEIGHTS)


def facts() -> dict[str, Any]:
    """What gptx.json says of a graph that is compiled here and now."""
    from gptx.system.cpu import (
        cpu_features,
        cpu_name,
    )  # here: artifacts that are not compiled load without it

    return {
        "graph": GRAPH,
        "weights": WEIGHTS,
        "provider": providers.CPU,
        "onnxruntime": providers.onnxruntime().__version__,
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "cpu_features": cpu_features(),
    }


def is_compiled(manifest: Manifest) -> bool:
    return bool(manifest.raw.get("compiled"))


def misfit(manifest: Manifest) -> str | None:
    """Why the compiled graphs of a manifest that has some are not for this machine; None where they are."""
    made, here = manifest.raw["compiled"], facts()
    graphs = {GRAPH, DECODE} if manifest.decode else {GRAPH}
    if made.get("graph") != GRAPH or not graphs <= manifest.files.keys():
        return "gptx.json describes it in a way that this gptx does not read"
    for field, what in (
        ("onnxruntime", "ONNX Runtime"),
        ("architecture", "a processor of architecture"),
    ):
        if made.get(field) != here[field]:
            return f"it is for {what} {made.get(field)}, and this is {here[field]}"
    then, now = made.get("cpu_features") or [], here["cpu_features"]
    lacking, more = [f for f in then if f not in now], [f for f in now if f not in then]
    if lacking or more:
        words = [
            f"{what} {', '.join(names)}"
            for what, names in (("lacks", lacking), ("also has", more))
            if names
        ]
        return f"it is for {made.get('cpu')}, and this processor {' and '.join(words)}"
    return None
