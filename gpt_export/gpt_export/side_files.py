"""Write the files beside the graph: configuration for other loaders, gptx.json, model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gptx
from gpt_export.genai_search import search
from gptx.artifact.folders import MANIFEST
from gptx.artifact.hashes import sha256
from gptx.artifact.layout import GRAPH
from gptx.artifact.task import FILE as TASK
from gptx.artifact.uses import task_in_words
from gptx_models.checkpoints import read_files
from gptx_models.checkpoints.checkpoint import write_json
from gptx_models.checkpoints.tokenizer_files import load_tokenizer

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    TASK,
)
CARD = "README.md"


def copy_side_files(source: Path, out: Path) -> None:
    """Copy configuration and tokenizer files from one artifact to another, unchanged."""
    for name in COPIED:
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if the file does not exist. Raises CheckpointError."""
    return read_files.read_json(path) if path.exists() else {}


def write_genai_config(
    out: Path, shape: dict[str, Any], tokens: dict[str, Any], *, shared: bool
) -> None:
    """Write genai_config.json for onnxruntime-genai, which refuses keys outside its src/config.h.

    shape: `model` of gptx.json; tokens: `tokens` of gptx.json. shared: True if the cache has the
    form `shared`. A model with a classification head gets no such file: genai only generates text.
    """
    if shape.get("n_class"):
        return
    eos = tokens["eos"] or [0]
    generation = read_json(out / "generation_config.json")
    config = {
        "model": {
            "type": "decoder",
            "bos_token_id": tokens["bos"] if tokens["bos"] is not None else eos[0],
            "eos_token_id": eos if len(eos) > 1 else eos[0],
            "pad_token_id": tokens["pad"] if tokens["pad"] is not None else eos[0],
            "vocab_size": shape["vocab_size"],
            "context_length": shape["n_ctx"],
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "onnx/model.onnx",
                "head_size": shape["head_dim"],
                "hidden_size": shape["n_embd"],
                "num_attention_heads": shape["n_head"],
                "num_hidden_layers": shape["n_layer"],
                "num_key_value_heads": shape["n_kv_head"],
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": search(generation, shape, shared=shared),
    }
    write_json(out / "genai_config.json", config)


def token_facts(folder: Path) -> dict[str, Any]:
    """`tokens` of gptx.json: bos, eos and pad ids, and the size of the tokenizer.

    vocab_size is the tokenizer's highest id + 1, or None without a tokenizer; it may be smaller
    than the model's. Raises CheckpointError for a damaged tokenizer.
    """
    generation = read_json(folder / "generation_config.json")
    eos = generation.get("eos_token_id")
    tokenizer_vocab_size = None
    if (folder / "tokenizer.json").exists():
        vocabulary = load_tokenizer(folder / "tokenizer.json").get_vocab(with_added_tokens=True)
        tokenizer_vocab_size = max(vocabulary.values(), default=-1) + 1
    return {
        "vocab_size": tokenizer_vocab_size,
        "bos": generation.get("bos_token_id"),
        "eos": [] if eos is None else eos if isinstance(eos, list) else [eos],
        "pad": generation.get("pad_token_id"),
    }


def write_manifest(out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write gptx.json with an empty certificate; returns its content.

    It holds `facts`, the versions of the format and of gptx, and the SHA-256 and size of every file
    except gptx.json itself and the model card.
    """
    files = sorted(
        p
        for p in out.rglob("*")
        if p.is_file() and p.relative_to(out).as_posix() not in (MANIFEST, CARD)
    )
    manifest = {
        "format": "gptx",
        "format_version": 1,
        "gptx_version": gptx.__version__,
        **facts,
        "certificate": {},
        "files": {
            p.relative_to(out).as_posix(): {"sha256": sha256(p), "size": p.stat().st_size}
            for p in files
        },
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def write_card(out: Path, name: str, card: str | None = None) -> None:
    """Write README.md, a model card with the facts of gptx.json.

    name: its title. card: the checkpoint's own card, which is appended.
    """
    manifest = read_json(out / MANIFEST)
    lines = [*_card_head(out, name, manifest), *_card_certificate(manifest["certificate"])]
    (out / CARD).write_text("\n".join(lines) + "\n" + (f"\n{card}\n" if card else ""), "utf-8")


def _card_head(out: Path, name: str, manifest: dict[str, Any]) -> list[str]:
    shape, source = manifest["model"], manifest["source"]
    task = task_in_words(out, shape.get("n_class", 0))
    tag = "text-classification" if shape.get("n_class") else "text-generation"
    parameters = shape["n_parameters"]
    return [
        "---",
        "library_name: gptx",
        f"tags: [onnx, gptx, {tag}]",
        *([f"license: {source['licence']}"] if source.get("licence") else []),
        "---",
        f"# {name}",
        "",
        f"A GPT of {parameters / 1e6:,.1f}M parameters as ONNX in {manifest['precision']},"
        f" written by gptx {manifest['gptx_version']}. {_loaders(manifest)}",
        "",
        "| | |",
        "|---|---|",
        *([f"| task | {task} |"] if task else []),
        f"| layers, width | {shape['n_layer']}, {shape['n_embd']} |",
        f"| heads, of keys and values | {shape['n_head']}, {shape['n_kv_head']} |",
        f"| context, vocabulary | {shape['n_ctx']}, {shape['vocab_size']} |",
        _size_row(manifest),
        *_mix(manifest["quantization"] or {}),
        f"| made from | {source.get('name', 'a checkpoint')} ({source.get('format', 'unknown')}) |",
        "",
    ]


def card_with_size(card: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    """A model card whose row of sizes is that of the manifest `after`; all else is kept.

    before: the manifest that the card was written from. A card without that row stays as it is.
    """
    return card.replace(_size_row(before), _size_row(after), 1)


def _size_row(manifest: dict[str, Any]) -> str:
    parameters = manifest["model"]["n_parameters"]
    size = sum(
        entry["size"] for path, entry in manifest["files"].items() if path.startswith("onnx/")
    )
    return (
        f"| graph and weights | {size / 1e6:,.1f} MB, {size / parameters:.2f} bytes a parameter |"
    )


def _card_certificate(certificate: dict[str, Any]) -> list[str]:
    figures, greedy = certificate["figures"], certificate["greedy"]
    text, environment = certificate["text"], certificate["environment"]
    perplexity, identical = [], []
    if greedy["compared"]:  # a language model
        error = _number(figures["perplexity_error"])
        perplexity = [
            f"| perplexity | {_number(figures['perplexity'])} ± {error} |",
            f"| the reference's | {_number(figures['perplexity_reference'])} |",
        ]
        identical = [f"| identical greedy tokens | {greedy['identical']} of {greedy['compared']} |"]
    largest, mean = figures["max_abs"], figures["mean_abs"]
    return [
        "## Parity certificate",
        "",
        f"Against {certificate['against']} on {text['source']} ({text['tokens']} tokens,"
        f" windows of {text['window']}, none overlapping), {environment['cpu']},"
        f" {environment['provider']}:",
        "",
        "| figure | |",
        "|---|---|",
        *perplexity,
        f"| mean KL, 99.9th percentile | {figures['kl_mean']:.2e}, {figures['kl_p999']:.2e} |",
        f"| same top-1 | {figures['same_top1']:.2%} |",
        f"| largest, mean difference of a logit | {largest:.2e}, {mean:.2e} |",
        *identical,
        "",
        "Outside its limits, and accepted as it is."
        if certificate["accepted"]
        else "Inside its limits.",
        *_context(certificate),
        "Prove it again on your machine: `gptx verify` with this folder.",
    ]


def _loaders(manifest: dict[str, Any]) -> str:
    if manifest["model"].get("n_class"):
        return (
            "It has a classification head, and `gptx classify` or `gptx.load(...).classify`"
            " reads a text with it."
        )
    if GRAPH not in manifest["files"]:
        return "It loads in gptx alone, on a CPU: it has a graph of gptx's native operators only."
    return (
        "It loads in gptx, onnxruntime-genai, optimum and transformers.js where its configuration"
        f" allows it (cache form: {manifest['cache']}, config.json: {manifest['model_type']})."
    )


def _context(certificate: dict[str, Any]) -> list[str]:
    """A line of the card if long positions were compared with another model than the reference."""
    against = certificate.get("context_against")
    return [f"Positions beyond the proof text are compared with {against}."] if against else []


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _mix(quantization: dict[str, Any]) -> list[str]:
    """A row of the card's table for a mix of bits (quantize --budget)."""
    if "mix" not in quantization:
        return []
    return [
        f"| mix of 4 and 8 bits | {quantization['mix']}, the best inside {quantization['budget']} |"
    ]
