"""Write the step graph beside model.onnx, or say why the artifact has none.

In: the module of model.onnx, and the artifact's folder. Out: onnx/step.onnx, and its fields of
gptx.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from gpt_export.graph.build import save_beside, share_weights
from gpt_export.graph.step_graph import CacheType, NoStepGraph, build_step_graph, has_step_graph
from gptx.artifact.layout import GRAPH, STEP
from gptx.artifact.native_form import NO_OPTIMUM
from gptx.errors import UsageError
from gptx.ort import native
from gptx.progress import note
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

# The fields of gptx.json on the step graph
STEP_FACTS = ("step", "step_cache_dtype", "kernel_order")


def check_cache_type(cache: CacheType | None, config: GPTConfig | None) -> None:
    """Raise UsageError if a type of the step graph's cache is asked for that cannot be proved.

    cache: None if none is asked for. config: None for a model that optimum exported.
    """
    if cache is None:
        return
    if config is None or not has_step_graph(config):
        reason = NO_OPTIMUM if config is None else "the model's heads are too wide for it"
        raise UsageError(
            f"--cache-type {cache} is the cache of {STEP}, which is not written, since {reason}:"
            " leave it out"
        )
    if not native.available():
        raise UsageError(
            f"--cache-type {cache} is proved on native operators, and none run here"
            f" ({native.describe()})"
        )


def with_cache_type(what: str, cache: CacheType | None) -> str:
    """What is proved, for messages: with --cache-type if that was given."""
    return what if cache is None else f"{what} with --cache-type {cache}"


def add_step_graph(gpt: GPT, out: Path, cache: CacheType | None = None) -> None:
    """Write the step graph of `gpt`, or say in a note why there is none.

    gpt, out and cache: as in write_step_graph.
    """
    try:
        write_step_graph(gpt, out, cache)
    except NoStepGraph as reason:
        note_no_step_graph(str(reason))


def write_step_graph(gpt: GPT, out: Path, cache: CacheType | None = None) -> None:
    """Write the step graph of `gpt` to the artifact folder `out`, which has model.onnx.

    gpt: its layers are those of model.onnx, made by graph_layers or stored_layers. The step graph
    reads its weights from model.onnx's data file. cache: see build_step_graph. Raises NoStepGraph.
    """
    save_beside(build_step_graph(gpt, cache), out / STEP)


def write_native_graph(gpt: GPT, out: Path, cache: CacheType | None = None) -> None:
    """Write the step graph of `gpt` to `out`, whose weights model.onnx lacks, in whole or in part.

    gpt: its layers are those of native_layers. Weights that model.onnx has too are read from its
    data file; all others are in a data file of the step graph. cache: see build_step_graph. Raises
    NoStepGraph.
    """
    file = out / STEP
    file.parent.mkdir(exist_ok=True)
    model = build_step_graph(gpt, cache)
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
    if not (folder / STEP).exists():
        return {}
    values = {value.name: value for value in ir.load(folder / STEP).graph.inputs}
    kind = values["past_key_values.0.key"].dtype
    assert kind is not None
    return {
        "step": STEP,
        "step_cache_dtype": kind.numpy().name,
        "kernel_order": native.KERNEL_ORDER,
    }
