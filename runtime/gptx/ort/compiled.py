"""What gptx compile adds to an artifact: its files, and whether they can be used on this machine.

Either graphs that ONNX Runtime compiled for one kind of machine, or the packed weights of the step
graph, for all. ONNX Runtime is imported only for an artifact that has compiled graphs.
"""

from __future__ import annotations

import platform
from typing import Any

from gptx.artifact.layout import STEP
from gptx.artifact.manifest import Manifest
from gptx.ort.device import CPU
from gptx.ort.library import onnxruntime
from gptx.ort.native import PACKING

# No name ends in .onnx: other loaders would open every such file in the folder as a model.
GRAPH, WEIGHTS = "compiled/graph.pb", "compiled/weights.bin"
# The compiled form of onnx/decode.onnx, if the artifact has that graph.
DECODE, DECODE_WEIGHTS = "compiled/decode.pb", "compiled/decode.bin"
PACKED = "compiled/step.bin"  # the weights of onnx/step.onnx, packed for native operators
FILES = (GRAPH, WEIGHTS, DECODE, DECODE_WEIGHTS, PACKED)


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


def packed_facts(manifest: Manifest) -> dict[str, Any]:
    """The field `compiled` of gptx.json for packed weights of the artifact's step graph."""
    return {"packed": PACKED, "packing": PACKING, "step": manifest.files[STEP].sha256}


def has_graphs(manifest: Manifest) -> bool:
    """True if the artifact has compiled graphs."""
    return "graph" in (manifest.raw.get("compiled") or {})


def has_packed(manifest: Manifest) -> bool:
    """True if the artifact has packed weights."""
    return "packed" in (manifest.raw.get("compiled") or {})


def packed_misfit(manifest: Manifest) -> str | None:
    """Why an artifact's packed weights cannot be used; None if they can."""
    made = manifest.raw["compiled"]
    if made.get("packed") != PACKED or PACKED not in manifest.files:
        return "gptx.json describes it in a way that this gptx does not read"
    if made.get("packing") != PACKING:
        return f"its weights are packed in way {made.get('packing')}, and this gptx has {PACKING}"
    if made.get("step") != manifest.files[STEP].sha256:
        return "it is of another step graph: compile the artifact again"
    return None


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
