"""Layers that are read back from model.onnx give the step graph of the layers that were traced."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx_ir as ir
import pytest

from builders.configurations import config_of, name_of, pairwise, small_presets
from builders.four_bit_weights import make_q4_1
from builders.random_gpt import random_gpt
from gpt_export.graph.attention_forms import CacheForm
from gpt_export.graph.build import build_graph, save_graph
from gpt_export.graph.layers import graph_layers
from gpt_export.graph.stored_layers import stored_layers
from gpt_export.graph.write_step_graph import write_step_graph
from gpt_export.quantization.recipes import SCHEMES, quantize_weights
from gptx.artifact.layout import GRAPH, STEP
from gptx.errors import ArtifactError
from gptx_models.gpt.config import GPTConfig

PRESETS = small_presets()
SINUSOIDAL = dataclasses.replace(PRESETS["gpt2"], tied=False, position="sinusoidal")
CLASSES = dataclasses.replace(PRESETS["gpt2"], n_class=3)
# Widths of whole blocks of 32, as weights that were Q4_1 have.
WIDE_GPT2, WIDE_LLAMA = (
    dataclasses.replace(PRESETS[name], n_embd=64, n_inner=96) for name in ("gpt2", "llama-style")
)
WINDOWS = [list(range(40))]

Case = tuple[GPTConfig, CacheForm, str]
CASES: dict[str, Case] = {
    "gpt2 int8-blocks": (PRESETS["gpt2"], "shared", "int8-blocks"),
    "llama int8-channels": (PRESETS["llama-style"], "shared", "int8-channels"),
    "llama int4-fast": (PRESETS["llama-style"], "shared", "int4-fast"),
    "sinusoidal growing int4": (SINUSOIDAL, "growing", "int4"),
    "sinusoidal growing fp32": (SINUSOIDAL, "growing", "fp32"),
    "classes fp32": (CLASSES, "shared", "fp32"),
    "llama of weights that were Q4_1": (WIDE_LLAMA, "shared", "Q4_1"),
    "gpt2 of weights that were Q4_1": (WIDE_GPT2, "growing", "Q4_1"),
}
MORE: dict[str, Case] = {
    **{f"{name} fp32": (config, "shared", "fp32") for name, config in PRESETS.items()},
    **{f"{name_of(one)} fp32": (config_of(one), one["cache"], "fp32") for one in pairwise()},
    **{f"classes {scheme}": (CLASSES, "shared", scheme) for scheme in SCHEMES},
    **{f"sinusoidal {scheme}": (SINUSOIDAL, "scatter", scheme) for scheme in SCHEMES},
}


@pytest.mark.parametrize(
    ("config", "form", "scheme"),
    [
        *(pytest.param(*case, id=name) for name, case in CASES.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.wide) for name, case in MORE.items()),
    ],
)
def test_the_step_graph_is_the_same(
    config: GPTConfig, form: CacheForm, scheme: str, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, vocab_size=300)  # some tokens are rare
    gpt, made = random_gpt(config), {}
    if scheme == "Q4_1":
        gpt, scheme = make_q4_1(gpt), "int4"
    if scheme != "fp32":
        some = SCHEMES[scheme]
        if some.activation_kl is not None:  # 16 bits in as many layers as can have them
            some = dataclasses.replace(some, activation_kl=1e-9)
        made = quantize_weights(gpt, some, WINDOWS).weights
    save_graph(build_graph(graph_layers(gpt, form, made), form), tmp_path / "onnx")
    write_step_graph(gpt, tmp_path)
    expected = (tmp_path / STEP).read_bytes()
    (tmp_path / STEP).unlink()
    write_step_graph(stored_layers(tmp_path / GRAPH, config), tmp_path)
    assert (tmp_path / STEP).read_bytes() == expected
    stored = [value.const_value for value in ir.load(tmp_path / STEP).graph.initializers.values()]
    inside = [one for one in stored if one is not None and not isinstance(one, ir.ExternalTensor)]
    large = {one.name for one in inside if one.nbytes > 1024}
    assert large <= {"rotation.weight"}  # no weight of model.onnx is stored twice


def test_columns_of_offsets_that_are_not_whole(tmp_path: Path) -> None:
    gpt = make_q4_1(random_gpt(WIDE_GPT2))
    made = quantize_weights(gpt, SCHEMES["int4"], WINDOWS).weights
    save_graph(build_graph(graph_layers(gpt, "shared", made), "shared"), tmp_path / "onnx")
    model = ir.load(tmp_path / GRAPH)
    (node,) = (
        node
        for node in model.graph
        if any(value and value.name == "blocks.0.mlp.down.blocks.weight" for value in node.inputs)
    )
    node.attributes["K"] = ir.AttrInt64("K", node.attributes.get_int("K", 0) - 1)
    ir.save(model, tmp_path / GRAPH)
    with pytest.raises(ArtifactError, match=r"mlp\.down\.blocks\.weight has .* columns"):
        stored_layers(tmp_path / GRAPH, WIDE_GPT2)


def test_a_graph_that_lacks_a_weight(fp32: Path, tmp_path: Path) -> None:
    model = ir.load(fp32 / GRAPH)
    other = dataclasses.replace(PRESETS["gpt2"], n_layer=9)
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx_data")
    with pytest.raises(ArtifactError, match=r"lacks the weight blocks\.2\."):
        stored_layers(tmp_path / "model.onnx", other)
