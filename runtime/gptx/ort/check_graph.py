"""Compare the inputs and outputs of an opened graph with the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptx.artifact.cache_parts import CachePart, cache_names, cache_parts
from gptx.artifact.manifest import Manifest, Shape
from gptx.errors import ArtifactError, first_of

# ONNX Runtime's names of types
LOGITS_DTYPES = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}
CACHE_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "int8": "tensor(int8)"}
MOST_NAMES = 4  # in one message: a graph of another tool may lack dozens
STEP_INPUTS = ("input_ids", "row_ids", "position_ids", "row_starts", "logits_at")
# Further inputs of step graphs; older ones lack them
EMBEDS, HIDDEN_AT = "inputs_embeds", "hidden_at"
INTEGER_INPUTS = ("attention_mask", *STEP_INPUTS, HIDDEN_AT)


def check_graph(manifest: Manifest, session: Any, file: Path, *, native: bool = False) -> None:
    """Raise ArtifactError if the session's graph differs from gptx.json; name all differences.

    native: the graph is the artifact's step graph.
    """
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    parts = cache_parts(_cache_dtype(manifest, inputs, native), manifest.model.head_dim)
    problems = [
        *_name_problems(manifest.model, set(inputs), set(outputs), parts, native),
        *_cache_problems(manifest.model, inputs, parts),
        *_type_problems({**inputs, **outputs}),
        *_logits_problems(manifest.model, outputs.get("logits")),
    ]
    if problems:
        raise ArtifactError(f"{file} does not fit gptx.json: {'; '.join(problems)}")


def cache_dtype(inputs: Iterable[Any]) -> np.dtype | None:
    """The type of keys and values of a graph with these inputs; None if gptx does not know it."""
    types = {node.type for node in inputs if node.name == "past_key_values.0.key"}
    return next((np.dtype(name) for name, kind in CACHE_TYPES.items() if kind in types), None)


def _cache_dtype(manifest: Manifest, inputs: dict[str, Any], native: bool) -> np.dtype:
    """The type that keys and values must have. An older step graph chooses its own."""
    if not native:
        return np.dtype(manifest.cache_dtype)
    own = None if manifest.raw.get("step_cache_dtype") else cache_dtype(inputs.values())
    return own or np.dtype(manifest.step_cache_dtype)


def _name_problems(
    shape: Shape, inputs: set[str], outputs: set[str], parts: list[CachePart], native: bool
) -> Iterator[str]:
    own = STEP_INPUTS if native else ("input_ids", "attention_mask")
    needed = {*own, *cache_names("past_key_values", shape.n_layer, parts)}
    if native and inputs & {EMBEDS, HIDDEN_AT}:
        needed |= {EMBEDS, HIDDEN_AT}
    results = {"logits", *cache_names("present", shape.n_layer, parts)}
    for text, names in (
        ("inputs are missing", needed - inputs),
        ("inputs that gptx does not feed", inputs - needed - {"position_ids"}),
        ("outputs are missing", results - outputs),
    ):
        if names:
            yield f"{text}: {first_of(sorted(names), MOST_NAMES)}"


def _cache_problems(shape: Shape, inputs: dict[str, Any], parts: list[CachePart]) -> Iterator[str]:
    for name, part in zip(
        cache_names("past_key_values", shape.n_layer, parts), parts * shape.n_layer
    ):
        node = inputs.get(name)
        if node is None:
            continue
        expected = [None, shape.n_kv_head, None, *part.shape]  # (B, G, P, D); B and P vary
        cache_type = CACHE_TYPES[part.dtype.name]
        found = [size if isinstance(size, int) else None for size in node.shape]
        fits = len(found) == len(expected) and all(f in (None, e) for f, e in zip(found, expected))
        if node.type != cache_type or not fits:
            heads = f"{shape.n_kv_head} heads" + "".join(f" of {size}" for size in part.shape)
            yield f"{name} is {node.type} {node.shape}, expected {cache_type} of {heads}"
            return  # the other layers have the same fault


def _type_problems(nodes: dict[str, Any]) -> Iterator[str]:
    for name, node in nodes.items():
        if name in INTEGER_INPUTS and node.type != "tensor(int64)":
            yield f"{name} is {node.type}, expected tensor(int64)"
        if name == EMBEDS and not (node.type == "tensor(float)" and _is_matrix(node.shape)):
            yield f"{name} is {node.type} {node.shape}, expected tensor(float) of rows of n_embd"
        if name == "logits" and node.type not in LOGITS_DTYPES:
            yield f"logits is {node.type}, expected one of {', '.join(LOGITS_DTYPES)}"


def _is_matrix(shape: list[Any]) -> bool:
    """True for any number of rows of a fixed size."""
    return len(shape) == 2 and isinstance(shape[1], int)


def _logits_problems(shape: Shape, logits: Any | None) -> Iterator[str]:
    size = logits.shape[-1] if logits is not None else None
    if isinstance(size, int) and size != shape.n_logits:
        name = "n_class" if shape.n_class else "vocab_size"
        yield f"logits has {size} values, expected {name} {shape.n_logits}"
