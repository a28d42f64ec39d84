"""What a folder holds, in words: an artifact or a checkpoint in, a Description out that cli/inspect.py prints.

Reads the small JSON files and the headers of weights, never the weights, so it is quick at any size. It needs neither
ONNX Runtime nor torch.
"""

from __future__ import annotations

import math
import shlex
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptx.artifact.class_head import N_LABELS
from gptx.artifact.folders import everything_in, is_plain, kind_of
from gptx.artifact.json_files import parse_json, read_json
from gptx.artifact.layout import CUDA, DECODE
from gptx.artifact.manifest import Tokens, read_manifest
from gptx.artifact.uses import task_in_words, use_command
from gptx.errors import ArtifactError, CheckpointError
from gptx.generation.generation_config import FIELDS, unsupported
from gptx.parity.certificate_rows import Rows, certificate_rows

# What gptx import reads when it stands alone, by the end of its name
_IMPORTABLE = {
    ".gguf": "a GGUF file",
    ".pt": "a PyTorch checkpoint",
    ".bin": "a llama2.c or PyTorch checkpoint",
}
_CACHES = {
    "shared": "shared (one buffer, written in place by GroupQueryAttention)",
    "growing": "growing (portable: standard operators, copied at every step)",
    "scatter": "scatter (one buffer, written in place by TensorScatter)",
}
_COVERED = ("gpt2", "openai-gpt", "llama", "mistral", "gptx")


@dataclass(frozen=True)
class Description:
    kind: str  # "artifact" | "checkpoint"
    facts: Rows
    files: list[tuple[str, int]]  # relative path, bytes
    certificate: Rows = field(default_factory=list)
    next: list[str] = field(default_factory=list)  # the commands that go on from here
    data: dict[str, Any] = field(default_factory=dict)  # the same for programs


def describe(path: Path) -> Description:
    """Raises ArtifactError or CheckpointError for what is neither."""
    kind = kind_of(path)
    if kind == "artifact":
        return _artifact(path)
    if kind == "checkpoint":
        return _checkpoint(path)
    if kind == "file" and path.suffix in _IMPORTABLE:
        raise CheckpointError(
            f"{path} is {_IMPORTABLE[path.suffix]}: gptx import {_quoted(path)} OUT makes a checkpoint folder of it"
        )
    if kind == "adapter":
        raise ArtifactError(
            f"{path} is a LoRA adapter: inspect what gptx merge {_quoted(path)} OUT"
            f" or gptx export {_quoted(path)} OUT makes"
        )
    if kind == "folder":
        raise ArtifactError(
            f"{path} is neither an artifact nor a checkpoint: it holds no gptx.json and no config.json"
        )
    what = "does not exist" if kind == "missing" else "is a file"
    raise ArtifactError(f"{path} {what}, and inspect takes a folder: an artifact or a checkpoint")


def _artifact(path: Path) -> Description:
    manifest = read_manifest(path)
    config, generation = _json(path / "config.json"), _json(path / "generation_config.json")
    files = _files(
        path, is_plain
    )  # of links that lead out of the folder nothing is said, not even the size
    model, raw = manifest.model, manifest.raw
    cache_bytes = (
        2
        * model.n_layer
        * model.n_kv_head
        * model.head_dim
        * (2 if manifest.cache_dtype == "float16" else 4)
    )
    graph_bytes = sum(size for name, size in files if name.startswith("onnx/"))
    heads = f"{model.n_head} heads of {model.head_dim}"
    if model.n_kv_head != model.n_head:
        heads += f" ({model.n_kv_head} for keys and values)"
    facts = [
        (
            "kind",
            f"artifact, format {raw['format_version']}, written by gptx {manifest.gptx_version}",
        ),
        (
            "model",
            f"{config.get('model_type', 'unknown')}, {_count(model.n_parameters)} parameters",
        ),
        ("shape", f"{model.n_layer} layers, {heads}, vocabulary of {model.vocab_size:,}"),
        (
            "precision",
            f"{manifest.precision}, {graph_bytes / model.n_parameters:.2f} bytes a parameter",
        ),
        *_quantization(raw.get("quantization") or {}),
        (
            "context",
            f"{model.n_ctx:,} tokens; prompts are fed in pieces of {manifest.prefill_chunk}",
        ),
        *_compiled(raw.get("compiled")),
        *(
            [("decode graph", f"{DECODE}, for steps of a single row on a CPU")]
            if manifest.decode
            else []
        ),
        *(
            [("cuda graph", f"{CUDA}, to be proved by gptx verify --device cuda")]
            if manifest.cuda
            else []
        ),
        ("cache", _CACHES[manifest.cache]),
        (
            "cache memory",
            f"{_size(cache_bytes)} a token, {_size(cache_bytes * model.n_ctx)} when full",
        ),
        ("tokenizer", _tokenizer(manifest.tokens, model.vocab_size)),
        (
            "chat template",
            "yes: gptx chat, gptx run --chat"
            if (path / "chat_template.jinja").exists()
            else "none",
        ),
        *_task(path, model.n_class),
        *([] if model.n_class else [("generates", generation_in_words(generation))]),
        *_source(raw.get("source") or {}),
    ]
    data = {
        "kind": "artifact",
        "path": str(path),
        "manifest": raw,
        "config": config,
        "generation_config": generation,
        "cache_bytes_per_token": cache_bytes,
        "bytes": sum(size for _, size in files),
        "files": dict(files),
    }
    proof = certificate_rows(raw.get("certificate") or {})
    commands = [use_command(manifest), f"gptx verify {_quoted(path)}"]
    return Description("artifact", facts, files, proof, commands, data)


def _checkpoint(path: Path) -> Description:
    config, files = (
        _json(path / "config.json"),
        _files(path, lambda folder, name: (folder / name).is_file()),
    )
    kind = config.get("model_type")
    tensors = _tensors(path)
    parameters = sum(math.prod(shape) for shape, _ in tensors.values())
    types = Counter(dtype for _, dtype in tensors.values())
    fields = {
        "layers": ("n_layer", "num_hidden_layers"),
        "heads": ("n_head", "num_attention_heads"),
    }
    fields |= {
        "width": ("n_embd", "hidden_size"),
        "context": ("n_ctx", "n_positions", "max_position_embeddings"),
    }
    fields |= {"vocabulary": ("vocab_size",)}
    shape = [
        f"{label} {config[name]}"
        for label, names in fields.items()
        if (name := _first(names, config)) is not None
    ]
    covered = kind in _COVERED
    command = f"gptx export {_quoted(path)} {_quoted(f'{path}-onnx')}" + (
        "" if covered else " --via optimum"
    )
    facts = [
        ("kind", "checkpoint folder: weights that gptx export, train and finetune read"),
        (
            "model",
            f"{kind or 'of no model_type'}"
            + ("" if covered else ", which gptx's own GPT does not cover"),
        ),
        ("shape", ", ".join(shape) or "not in config.json"),
        (
            "parameters",
            f"{_count(parameters)} in {len(tensors)} tensors"
            if tensors
            else "no .safetensors file here",
        ),
        ("types", ", ".join(f"{dtype} ({n})" for dtype, n in types.most_common()) or "unknown"),
        (
            "tokenizer",
            "tokenizer.json"
            if (path / "tokenizer.json").exists()
            else "none: it will run on token ids",
        ),
        ("chat template", "yes" if (path / "chat_template.jinja").exists() else "none"),
        *_task(path, _outputs(config)),
        *_source(_json(path / "gptx_source.json")),
    ]
    data = {
        "kind": "checkpoint",
        "path": str(path),
        "config": config,
        "parameters": parameters,
        "tensor_types": dict(types),
        "bytes": sum(size for _, size in files),
        "files": dict(files),
        "next": command,
    }
    return Description("checkpoint", facts, files, [], [command], data)


def _task(path: Path, n_class: int) -> Rows:
    words = task_in_words(path, n_class)
    return [("task", words)] if words else []


def _outputs(config: dict[str, Any]) -> int:
    """Of the classification head that a checkpoint's config.json speaks of, by transformers' rules; 0: of none."""
    names, of_gptx = config.get("architectures"), config.get("n_class")
    if isinstance(of_gptx, int) and of_gptx > 0:
        return of_gptx
    if not (
        isinstance(names, list) and any("ForSequenceClassification" in str(name) for name in names)
    ):
        return 0
    labels, count = config.get("id2label"), config.get("num_labels")
    return (
        len(labels)
        if labels and isinstance(labels, dict)
        else count
        if isinstance(count, int)
        else N_LABELS
    )


def generation_in_words(generation: dict[str, Any]) -> str:
    """generation_config.json as a person says it."""
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
    rules = [
        name
        for name, role in FIELDS.items()
        if role == "rule" and generation.get(name) not in (None, 0, [])
    ]
    if rules:
        words.append(f"with {', '.join(rules)}")
    if unheeded := unsupported(generation):
        words.append(f"not obeyed: {', '.join(unheeded)}")
    return ", ".join(words)


def _quantization(quantization: dict[str, Any]) -> Rows:
    words = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in quantization.items()
        if not isinstance(value, dict)
    ]
    return [("quantization", ", ".join(words))] if words else []


def _compiled(made: dict[str, Any] | None) -> Rows:
    """For which machine; whether this is one needs ONNX Runtime, and gptx.load says it."""
    if not made:
        return []
    words = f"{made.get('cpu')}, ONNX Runtime {made.get('onnxruntime')}: {' '.join(made.get('cpu_features') or [])}"
    return [
        ("compiled for", words + (", accepted outside its limits" if made.get("accepted") else ""))
    ]


def _tokenizer(tokens: Tokens, vocab_size: int) -> str:
    if tokens.vocab_size is None:
        return "none: it runs on token ids, gptx run --tokens 1,2,3"
    special = [
        f"{name} {value}"
        for name, value in (("bos", tokens.bos), ("pad", tokens.pad))
        if value is not None
    ]
    special += [f"end of text {', '.join(map(str, tokens.eos))}"] if tokens.eos else []
    padded = vocab_size - tokens.vocab_size
    words = [
        f"{tokens.vocab_size:,} ids",
        *special,
        f"{padded} ids of the vocabulary are empty" if padded > 0 else "",
    ]
    return ", ".join(filter(None, words))


def _source(source: dict[str, Any]) -> Rows:
    what = ", ".join(str(source[key]) for key in ("format", "name") if source.get(key))
    types = source.get("tensor_types")
    if isinstance(types, dict) and types:
        counted = Counter(map(str, types.values())).most_common()
        what += f"; tensors were {', '.join(f'{kind} ({n})' for kind, n in counted)}"
    rows = [("made from", what)] if what else []
    return rows + ([("licence", str(source["licence"]))] if source.get("licence") else [])


def _files(path: Path, counts: Callable[[Path, str], bool]) -> list[tuple[str, int]]:
    """Names and sizes of what counts(folder, name)."""
    every = [one for top in path.iterdir() for one in everything_in(top)]
    names = sorted(Path(one).relative_to(path).as_posix() for one in every)
    return [(name, (path / name).stat().st_size) for name in names if counts(path, name)]


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file."""
    return read_json(path, ArtifactError, optional=True)


def _tensors(path: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and type of every tensor in the folder's safetensors files, from their headers."""
    tensors: dict[str, tuple[list[int], str]] = {}
    for file in sorted(path.glob("*.safetensors")):
        if file.name == "gptx_reference.safetensors":
            continue
        if not file.is_file():
            what = "a link that leads nowhere" if file.is_symlink() else "not a file"
            raise CheckpointError(f"{file} is {what}: copy or download it again")
        with file.open("rb") as opened:
            start = opened.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 0 < length <= file.stat().st_size - 8:  # a Git LFS pointer, or cut short
                raise CheckpointError(
                    f"{file} is no safetensors file, or cut short: copy it again, or run git lfs pull"
                )
            header = parse_json(opened.read(length), f"the header of {file}", CheckpointError)
        header.pop("__metadata__", None)
        tensors |= {name: (facts["shape"], facts["dtype"]) for name, facts in header.items()}
    return tensors


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))


def _first(names: tuple[str, ...], config: dict[str, Any]) -> str | None:
    return next((name for name in names if config.get(name) is not None), None)


def _count(n: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= scale:
            return f"{n / scale:.1f}{unit}"
    return str(n)


def _size(n: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.1f} {unit}"
    return f"{n:.0f} bytes"
