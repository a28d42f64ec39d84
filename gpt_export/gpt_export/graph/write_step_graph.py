"""Write the step graph beside model.onnx, or say why the artifact has none.

In: the module of model.onnx, and the artifact's folder. Out: onnx/step.onnx, and its fields of
gptx.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from gpt_export.graph.build import save_beside
from gpt_export.graph.step_graph import NoStepGraph, build_step_graph
from gptx.artifact.layout import STEP
from gptx.ort.native import KERNEL_ORDER
from gptx.progress import note
from gptx_models.gpt.model import GPT


def add_step_graph(gpt: GPT, out: Path) -> None:
    """Write the step graph of `gpt`, or say in a note why there is none.

    gpt and out: as in write_step_graph.
    """
    try:
        write_step_graph(gpt, out)
    except NoStepGraph as reason:
        note_no_step_graph(str(reason))


def write_step_graph(gpt: GPT, out: Path) -> None:
    """Write the step graph of `gpt` to the artifact folder `out`, which has model.onnx.

    gpt: its layers are those of model.onnx, made by graph_layers or stored_layers. The step graph
    reads its weights from model.onnx's data file. Raises NoStepGraph.
    """
    save_beside(build_step_graph(gpt), out / STEP)


def write_native_graph(gpt: GPT, out: Path) -> None:
    """Write the step graph of `gpt` with weights of its own, for an artifact without model.onnx.

    gpt: its layers are those of native_layers. Raises NoStepGraph.
    """
    model = build_step_graph(gpt)
    (out / STEP).parent.mkdir(exist_ok=True)
    data = f"{Path(STEP).name}_data"
    ir.save(model, out / STEP, external_data=data, size_threshold_bytes=1024)


def note_no_step_graph(reason: str) -> None:
    """Tell the user that an artifact is written without a step graph."""
    note(f"{STEP} is not written, since {reason}: the artifact runs on ONNX Runtime's operators")


def step_facts(folder: Path) -> dict[str, Any]:
    """The fields of gptx.json on the step graph in an artifact's folder; {} if there is none."""
    return {"step": STEP, "kernel_order": KERNEL_ORDER} if (folder / STEP).exists() else {}
