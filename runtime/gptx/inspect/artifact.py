"""Describe an artifact from its gptx.json and the Hugging Face files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gptx.artifact.cache_parts import cache_parts, position_bytes
from gptx.artifact.folders import is_plain
from gptx.artifact.json_files import read_json
from gptx.artifact.layout import CUDA, DECODE, STEP
from gptx.artifact.manifest import Manifest, Tokens, read_manifest
from gptx.artifact.uses import use_command
from gptx.errors import ArtifactError
from gptx.generation.generation_config import FIELDS, unsupported
from gptx.generation.options import DEFAULTS, SPECS
from gptx.inspect.description import (
    Description,
    count_in_words,
    files_in,
    quoted,
    size_in_words,
    source_rows,
    task_rows,
)
from gptx.ort.open_sessions import runs_step
from gptx.parity.certificate_rows import Rows, certificate_rows

_CACHES = {
    "shared": "shared (one buffer, written in place by GroupQueryAttention)",
    "growing": "growing (portable: standard operators, copied at every step)",
    "scatter": "scatter (one buffer, written in place by TensorScatter)",
}


def describe_artifact(path: Path) -> Description:
    """Describe the artifact folder `path`. Raises ArtifactError if it is damaged."""
    manifest = read_manifest(path)
    config = read_json(path / "config.json", ArtifactError, optional=True)
    generation = read_json(path / "generation_config.json", ArtifactError, optional=True)
    # Links that lead out of the folder are left out: even the size of their target is private.
    files = files_in(path, is_plain)
    raw, n_class = manifest.raw, manifest.model.n_class
    facts = [
        *_model_rows(manifest, config, files),
        *_graph_rows(manifest),
        *_cache_rows(manifest),
        ("tokenizer", _tokenizer(manifest.tokens, manifest.model.vocab_size)),
        ("chat template", _chat_template(path)),
        *task_rows(path, n_class),
        *([] if n_class else [("generates", generation_in_words(generation))]),
        *source_rows(raw.get("source") or {}),
    ]
    data = {
        "kind": "artifact",
        "path": str(path),
        "manifest": raw,
        "config": config,
        "generation_config": generation,
        "cache_bytes_per_token": _cache_bytes(manifest),
        "cache_dtype": _cache_dtype(manifest),
        "bytes": sum(size for _, size in files),
        "files": dict(files),
    }
    commands = [f"gptx verify {quoted(path)}", use_command(manifest)]
    certificate = certificate_rows(raw.get("certificate") or {})
    return Description("artifact", facts, files, certificate, commands, data)


def _model_rows(manifest: Manifest, config: dict[str, Any], files: list[tuple[str, int]]) -> Rows:
    model, raw = manifest.model, manifest.raw
    heads = f"{model.n_head} heads of {model.head_dim}"
    if model.n_kv_head != model.n_head:
        heads += f" ({model.n_kv_head} for keys and values)"
    graph_bytes = sum(size for name, size in files if name.startswith("onnx/"))
    architecture = config.get("model_type", "unknown")
    return [
        (
            "kind",
            f"artifact, format {raw['format_version']}, written by gptx {manifest.gptx_version}",
        ),
        ("model", f"{architecture}, {count_in_words(model.n_parameters)} parameters"),
        ("shape", f"{model.n_layer} layers, {heads}, vocabulary of {model.vocab_size:,}"),
        (
            "precision",
            f"{manifest.precision}, {graph_bytes / model.n_parameters:.2f} bytes a parameter",
        ),
        *_quantization_rows(raw.get("quantization") or {}),
        (
            "context",
            f"{model.n_ctx:,} tokens; prompts are fed in pieces of {manifest.prefill_chunk}",
        ),
    ]


def _quantization_rows(quantization: dict[str, Any]) -> Rows:
    words = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in quantization.items()
        if not isinstance(value, dict)
    ]
    return [("quantization", ", ".join(words))] if words else []


def _graph_rows(manifest: Manifest) -> Rows:
    """The graphs that the artifact has in addition to onnx/model.onnx."""
    rows = _compiled_rows(manifest.raw.get("compiled"))
    if manifest.decode:
        rows.append(("decode graph", f"{DECODE}, for steps of a single row on a CPU"))
    if manifest.step:
        only = "; no other graph, so no other loader" if manifest.native_only else ""
        rows.append(("step graph", f"{STEP}, for gptx's native operators on a CPU{only}"))
    if manifest.cuda:
        rows.append(("cuda graph", f"{CUDA}, to be proved by gptx verify --device cuda"))
    return rows


def _compiled_rows(made: dict[str, Any] | None) -> Rows:
    """The machine that an artifact was compiled for.

    Only gptx.load can tell whether what was compiled is used on this machine.
    """
    if not made:
        return []
    if "packed" in made:
        words = f"gptx's native operators on any processor: {made['packed']}"
    else:
        features = " ".join(made.get("cpu_features") or [])
        words = f"{made.get('cpu')}, ONNX Runtime {made.get('onnxruntime')}: {features}"
    accepted = ", accepted outside its limits" if made.get("accepted") else ""
    return [("compiled for", words + accepted)]


def _cache_rows(manifest: Manifest) -> Rows:
    cache_bytes = _cache_bytes(manifest)
    full = size_in_words(cache_bytes * manifest.model.n_ctx)
    operators = "native operators" if runs_step(manifest) else "ONNX Runtime's operators"
    size = f"{size_in_words(cache_bytes)} a token, {full} when full"
    return [
        ("cache", _CACHES[manifest.cache]),
        ("cache memory", f"{size}: {_cache_dtype(manifest)}, on {operators}"),
    ]


def _cache_dtype(manifest: Manifest) -> str:
    """The type of keys and values in the graph that runs on this machine's CPU."""
    return manifest.step_cache_dtype if runs_step(manifest) else manifest.cache_dtype


def _cache_bytes(manifest: Manifest) -> int:
    """Bytes of the cache of one token in all layers."""
    model = manifest.model
    parts = cache_parts(np.dtype(_cache_dtype(manifest)), model.head_dim)
    return model.n_layer * model.n_kv_head * position_bytes(parts)


def _tokenizer(tokens: Tokens, vocab_size: int) -> str:
    if tokens.vocab_size is None:
        return "none: it runs on token ids, gptx run --tokens 1,2,3"
    words = [f"{tokens.vocab_size:,} ids"]
    for name, value in (("bos", tokens.bos), ("pad", tokens.pad)):
        if value is not None:
            words.append(f"{name} {value}")
    if tokens.eos:
        words.append(f"end of text {', '.join(map(str, tokens.eos))}")
    padded = vocab_size - tokens.vocab_size
    if padded > 0:
        words.append(f"{padded} ids of the vocabulary are empty")
    return ", ".join(words)


def _chat_template(path: Path) -> str:
    there = (path / "chat_template.jinja").exists()
    return "yes: gptx chat, gptx run --chat" if there else "none"


def generation_in_words(generation: dict[str, Any]) -> str:
    """The settings in generation_config.json, for people."""
    if not generation.get("do_sample"):
        words = ["greedily"]
    else:
        names = ("temperature", "top_k", "top_p", "min_p")
        given = [f"{name} {generation[name]}" for name in names if generation.get(name) is not None]
        words = [f"sampling ({', '.join(given) or 'temperature 1'})"]
    if generation.get("repetition_penalty", 1) not in (None, 1, 1.0):
        words.append(f"repetition penalty {generation['repetition_penalty']}")
    if generation.get("max_new_tokens"):
        words.append(f"up to {generation['max_new_tokens']} tokens")
    said = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    rules = [
        name
        for name, role in FIELDS.items()
        if role in ("option", "rule") and name not in (*said, "max_new_tokens")
        if generation.get(name) not in (None, 0, [], DEFAULTS.get(name))
        if generation.get("do_sample") or name not in SPECS or not SPECS[name].sampling_only
    ]
    if rules:
        words.append(f"with {', '.join(rules)}")
    if ignored := unsupported(generation):
        words.append(f"not obeyed: {', '.join(ignored)}")
    return ", ".join(words)
