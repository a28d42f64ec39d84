"""The compiled graphs in an artifact: their files, and whether they were made for this machine.

gptx/compile.py makes them. ONNX Runtime is imported only for an artifact that has compiled graphs.
"""

from __future__ import annotations

import platform
from typing import Any

from gptx.artifact.manifest import Manifest
from gptx.ort.device import CPU
from gptx.ort.library import onnxruntime

# No name ends in .onnx: other loaders would open every such file in the folder as a model.
GRAPH, WEIGHTS = "compiled/graph.pb", "compiled/weights.bin"
# The compiled form of onnx/decode.onnx, if the artifact has that graph.
DECODE, DECODE_WEIGHTS = "compiled/decode.pb", "compiled/decode.bin"
FILES = (GRAPH, WEIGHTS, DECODE, DECODE_WEIGHTS)


def facts() -> dict[str, Any]:
    """The field `compiled` of gptx.json for graphs that are compiled on this machine."""
    # Imported here: only artifacts with compiled graphs need it.
    from gptx.system.cpu import cpu_features, cpu_name

    return {
        "graph": GRAPH,
        "weights": WEIGHTS,
        "provider": CPU,
        "onnxruntime": onnxruntime().__version__,
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "cpu_features": cpu_features(),
    }


def is_compiled(manifest: Manifest) -> bool:
    """True if the artifact has compiled graphs."""
    return bool(manifest.raw.get("compiled"))


def misfit(manifest: Manifest) -> str | None:
    """Why this machine cannot use an artifact's compiled graphs; None if it can."""
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
    differences = _features_differ(made.get("cpu_features") or [], here["cpu_features"])
    if differences:
        return f"it is for {made.get('cpu')}, and this processor {differences}"
    return None


def _features_differ(made: list[str], here: list[str]) -> str:
    """How the features of this processor (`here`) differ from those in gptx.json (`made`).

    For instance "lacks avx512 and also has avx_vnni"; "" if they do not differ.
    """
    parts = (
        ("lacks", [feature for feature in made if feature not in here]),
        ("also has", [feature for feature in here if feature not in made]),
    )
    return " and ".join(f"{what} {', '.join(names)}" for what, names in parts if names)
