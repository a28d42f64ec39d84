"""Write the step graph beside model.onnx, or say why the artifact has none.

In: the module of model.onnx, and the artifact's folder. Out: onnx/step.onnx, and its fields of
gptx.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from gpt_export.graph.build import save_beside, share_weights
from gpt_export.graph.step_graph import NoStepGraph, build_step_graph
from gptx.artifact.layout import GRAPH, STEP
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
    """Write the step graph of `gpt` to `out`, whose weights model.onnx lacks, in whole or in part.

    gpt: its layers are those of native_layers. Weights that model.onnx has too are read from its
    data file; all others are in a data file of the step graph. Raises NoStepGraph.
    """
    file = out / STEP
    file.parent.mkdir(exist_ok=True)
    model = build_step_graph(gpt)
    if (out / GRAPH).exists():
        share_weights(model, out / GRAPH)
    values = model.graph.initializers
    own = {
        name: weight
        for name, value in values.items()
        if (weight := value.const_value) is not None
        and not isinstance(weight, ir.ExternalTensor)
        and weight.nbytes > 1024
    }
    stored = ir.external_data.convert_tensors_to_external(
        list(own.values()), file.parent, f"{file.name}_data"
    )
    for name, weight in zip(own, stored):
        values[name].const_value = weight
    ir.save(model, file)


def note_no_step_graph(reason: str) -> None:
    """Tell the user that an artifact is written without a step graph."""
    note(f"{STEP} is not written, since {reason}: the artifact runs on ONNX Runtime's operators")


def step_facts(folder: Path) -> dict[str, Any]:
    """The fields of gptx.json on the step graph in an artifact's folder; {} if there is none."""
    return {"step": STEP, "kernel_order": KERNEL_ORDER} if (folder / STEP).exists() else {}
