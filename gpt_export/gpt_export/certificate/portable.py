"""Prove onnx/model.onnx of an artifact whose step graph has the certificate.

Other loaders, and machines without native operators, run model.onnx. In: the artifact and its
reference. Out: the figures that gptx verify measures there, and those outside the limits.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import gptx
from gptx.artifact.layout import GRAPH
from gptx.errors import GptxWarning
from gptx.ort.native import onnx_runtime_only
from gptx.parity.limits import judge
from gptx.parity.reference import Reference
from gptx.progress import stage
from gptx.verify import measure


def measure_portable(
    artifact: Path, reference: Reference, limits: dict[str, float]
) -> tuple[dict[str, float | int], list[str]]:
    """Run model.onnx on ONNX Runtime's operators.

    Returns the figures by name, and a phrase for each that is outside `limits`.
    """
    with onnx_runtime_only(), warnings.catch_warnings():
        warnings.simplefilter("ignore", GptxWarning)  # the first load of the artifact gave them
        model = gptx.load(artifact)
    with model, stage(f"Measuring {GRAPH}"):
        measured = measure(model, reference)
    rows = judge(measured.figures, measured.consistency, limits, measured.context)
    outside = [
        f"{row.name} of {GRAPH} is {row.value:.3g}, the limit {row.limit:.3g}"
        for row in rows
        if not row.ok
    ]
    return measured.to_dict(), outside
