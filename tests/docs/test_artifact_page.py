"""The artifact's page names every field that the code reads and that artifacts have."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors import safe_open

from gptx.artifact.layout import SIDE_FILES
from gptx.artifact.manifest import FileFacts, Manifest, Shape, Tokens
from gptx.model import DEFAULT_MODEL
from gptx.parity.metrics import Figures
from gptx_models.gpt.config import GPTConfig

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "artifact.md").read_text("utf-8")
NAMES = set(re.findall(r"`([\w.{}*/]+)`", PAGE))
# Objects with names of their own, or whose parts the page describes in one row
OPEN = {
    "certificate.chain", "certificate.environment", "certificate.limits", "certificate.outside",
    "certificate.text", "certificate.verified", "certificate.decode", "certificate.portable",
    "quantization.calibration", "quantization.cpu", "quantization.pareto", "source", "compiled",
    "versions",
}  # fmt: skip
KEYED = {
    "files": "name", "quantization.sensitivity": "tensor", "quantization.tensors": "tensor",
    "upgraded.figures": "figure",
}  # fmt: skip


def fields_of(value: Any, path: str = "") -> Iterator[str]:
    """The fields of a gptx.json as the page writes them: model.n_layer, files.{name}.size."""
    if not isinstance(value, dict) or not value or path in OPEN:
        yield path
        return
    for key, inner in value.items():
        step = f"{{{KEYED[path]}}}" if path in KEYED else key
        yield from fields_of(inner, f"{path}.{step}" if path else step)


def is_named(field: str) -> bool:
    """`parts` of a table have the fields of a tensor themselves."""
    return (
        field in NAMES
        or any(name.startswith(f"{field}.") for name in NAMES)
        or f"### {field}\n" in PAGE
    )


def missing(folder: Path) -> set[str]:
    raw = json.loads((folder / "gptx.json").read_text("utf-8"))
    return {field for field in fields_of(raw) if not is_named(field)}


def test_the_default_model() -> None:
    assert not missing(DEFAULT_MODEL)


def test_exported_and_quantized_artifacts(fp32: Path, quantized: dict[str, Path]) -> None:
    assert not missing(fp32)
    for folder in quantized.values():
        assert not missing(folder), folder


def names(kind: type, prefix: str = "") -> set[str]:
    return {f"{prefix}{field.name}" for field in dataclasses.fields(kind)}


def test_every_field_of_the_dataclasses() -> None:
    of_the_object = {"path", "raw"}  # where the manifest lies, and gptx.json whole
    assert {name for name in names(Manifest) - of_the_object if not is_named(name)} == set()
    assert names(Shape, "model.") <= NAMES
    assert names(Tokens, "tokens.") <= NAMES
    assert names(FileFacts, "files.{name}.") <= NAMES
    assert names(Figures, "certificate.figures.") <= NAMES
    assert names(GPTConfig, "gpt_config.") <= NAMES


def test_every_file() -> None:
    assert {*SIDE_FILES, "gptx.json", "onnx/model.onnx", "README.md"} <= NAMES


@pytest.mark.parametrize("graph", ["model.onnx", "cuda.onnx"])
def test_every_input_and_output(quantized: dict[str, Path], graph: str) -> None:
    file = quantized["fp16"] / "onnx" / graph
    found = onnx.load(str(file), load_external_data=False).graph
    for value in (*found.input, *found.output):
        assert re.sub(r"\.\d+\.", ".{i}.", value.name) in NAMES, value.name


def test_every_tensor_of_the_reference(fp32: Path) -> None:
    with safe_open(fp32 / "gptx_reference.safetensors", "numpy") as opened:
        for name in opened.keys():  # noqa: SIM118
            assert name in NAMES or name.startswith("context_"), name
