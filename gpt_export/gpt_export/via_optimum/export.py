"""Export an architecture that our GPT does not cover (Qwen, Gemma, Phi ...) through optimum-onnx.

optimum writes the graph, with a growing cache. Manifest, certificate and runtime are the same as
those of our own exports; the reference of the certificate is transformers in fp32.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from gpt_export.certificate.certify import GREEDY, Recording, record
from gpt_export.certificate.eval_text import EvalText, load_eval_text
from gpt_export.certificate.prove import prove, reference_budget, tool_versions
from gpt_export.genai_search import note_unsupported
from gpt_export.graph.attention_forms import PREFILL_CHUNK
from gpt_export.graph.stored_weights import check_weights, read_graph
from gpt_export.graph.write_step_graph import note_no_step_graph
from gpt_export.side_files import (
    copy_side_files,
    read_json,
    token_facts,
    write_card,
    write_genai_config,
)
from gpt_export.source_checkpoint import expect_checkpoint, hash_weights
from gptx.artifact.folders import check_apart, check_output, new_folder
from gptx.artifact.native_form import NO_OPTIMUM
from gptx.errors import CheckpointError, GptxError
from gptx.install import pip_command
from gptx.parity.limits import limits_for
from gptx.parity.whole_context import context_windows
from gptx.progress import note, stage
from gptx_models.checkpoints.checkpoint import SOURCE, write_json
from gptx_models.checkpoints.side_files import read_side_files
from gptx_models.checkpoints.token_ids import IDS
from gptx_models.evaluation.torch_generate import generate


def export_via_optimum(
    source: Path,
    out: Path,
    *,
    text: Path | None = None,
    limits: Mapping[str, float] | None = None,
    accept: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Export the Hugging Face folder `source` with optimum-onnx; returns the certificate.

    Options and errors as in gpt_export.export.export_checkpoint. Also raises CheckpointError if
    optimum or transformers cannot load the model, and GptxError if optimum-onnx is not installed.
    """
    expect_checkpoint(source)
    bounds = limits_for("fp32", limits)
    weights = sum(
        file.stat().st_size
        for pattern in ("*.safetensors", "*.bin")
        for file in source.glob(pattern)
    )
    check_apart(source, out)
    check_output(out, force=force, needed=4 * weights)
    with new_folder(out, force=force, needed=4 * weights) as staging:
        with stage("Exporting with optimum"):
            _export(source, staging)
        graph = read_graph(staging / "onnx" / "model.onnx")
        check_weights(graph, str(source))
        note_no_step_graph(NO_OPTIMUM)
        copy_side_files(source, staging)
        config = _reconcile(staging, graph)
        note_unsupported(read_json(staging / "generation_config.json"), genai=True)
        facts = _facts(graph, config, staging)
        shape = facts["model"]
        proof = load_eval_text(
            staging, vocab_size=shape["vocab_size"], n_ctx=shape["n_ctx"], text=text
        )
        with tempfile.NamedTemporaryFile(dir=staging.parent, prefix=".gptx-reference-") as scratch:
            recording, shape["n_parameters"] = _record(
                source, proof, shape["n_ctx"], Path(scratch.name)
            )
            gc.collect()
            recording.reference(
                reference_budget(shape["n_parameters"]), staging, facts["tokens"]
            ).save(staging)
            write_genai_config(staging, shape, facts["tokens"], shared=False)
            about = read_json(source / SOURCE) or {"format": "huggingface", "name": source.name}
            facts["source"] = {**about, **hash_weights(source), "via": "optimum"}
            certificate = prove(
                staging, facts, recording, bounds, accept=accept, what=f"the export of {source}"
            )
        write_card(staging, out.name)
    return certificate


def _export(source: Path, staging: Path) -> None:
    try:
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise GptxError(
            f"--via optimum needs optimum-onnx, which is not installed: {pip_command('interop')}"
        ) from error
    with _silent(), tempfile.TemporaryDirectory(dir=staging) as scratch:
        try:
            main_export(
                str(source), output=scratch, task="text-generation-with-past", do_validation=False
            )
        except Exception as error:  # optimum raises ValueError, KeyError, RuntimeError ...
            raise CheckpointError(
                f"optimum cannot export {source}: {_first_line(error)}"
            ) from error
        (staging / "onnx").mkdir()
        for file in Path(scratch).glob("model.onnx*"):
            shutil.move(file, staging / "onnx" / file.name)
        copy_side_files(Path(scratch), staging)


def _record(source: Path, text: EvalText, n_ctx: int, scratch: Path) -> tuple[Recording, int]:
    """Record the transformers model as the reference; also returns its number of parameters."""
    reference = _load_reference(source)
    recording = record(
        "transformers fp32",
        text,
        scratch,
        lambda window, position: _logits(reference, window, position),
        lambda prompt: _greedy(reference, prompt, min(GREEDY, n_ctx - len(prompt))),
        context=context_windows(
            n_ctx, offsets="position_ids" in inspect.signature(reference.forward).parameters
        ),
    )
    return recording, reference.num_parameters()


def _load_reference(source: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with _silent():
        try:
            return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        except Exception as error:
            raise CheckpointError(
                f"transformers cannot load {source}: {_first_line(error)}"
            ) from error


def _logits(reference: Any, window: list[int], position: int) -> np.ndarray:
    where = (
        {"position_ids": torch.arange(position, position + len(window))[None]} if position else {}
    )
    with torch.no_grad():
        return reference(torch.tensor([window]), **where).logits[0].float().numpy()


def _greedy(reference: Any, prompt: list[int], n: int) -> list[int]:
    """The `n` likeliest tokens after a prompt, by a model of transformers with its KV cache."""
    past = None

    def next_logits(new: torch.Tensor) -> torch.Tensor:
        nonlocal past
        output = reference(new, past_key_values=past, use_cache=True)
        past = output.past_key_values
        return output.logits[:, -1]

    [tokens] = generate(next_logits, torch.tensor([prompt]), n_tokens=n)
    return tokens


# Names that architectures give to n_head, n_embd and n_ctx in config.json
_NAMES = (
    ("num_attention_heads", "n_head", "num_heads"),
    ("hidden_size", "n_embd", "d_model"),
    ("max_position_embeddings", "n_positions", "max_seq_len"),
)


def _named(config: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _reconcile(folder: Path, graph: ir.Model) -> dict[str, Any]:
    """Make the side files in `folder` agree with each other and the graph; returns config.json.

    generation_config.json and config.json get the same token ids, as they do in our own exports.
    """
    logits = next(value for value in graph.graph.outputs if value.name == "logits")
    side = read_side_files(folder, _static(logits.shape[2] if logits.shape else None), tell=note)
    side.write(folder)
    ids = {name: side.generation[name] for name in IDS if name in side.generation}
    config = {
        name: value for name, value in read_json(folder / "config.json").items() if name not in IDS
    } | ids
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", side.generation)
    return config


def _facts(graph: ir.Model, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values of gptx.json that describe the model, from the graph's inputs and config.json."""
    keys = [value for value in graph.graph.inputs if value.name and value.name.endswith(".key")]
    logits = next(value for value in graph.graph.outputs if value.name == "logits")
    n_head, n_embd, n_ctx = (_named(config, names) for names in _NAMES)
    if (
        not keys
        or keys[0].shape is None
        or logits.shape is None
        or not (n_head and n_embd and n_ctx)
    ):
        raise CheckpointError(
            f"{folder} is no decoder with a KV cache as optimum writes them: its graph has no past"
            " keys, or its config.json none of"
            f" {', or none of '.join(', '.join(names) for names in _NAMES)}"
        )
    return {
        "precision": "fp32",
        "cache": "growing",
        "cache_dtype": "float32",
        "prefill_chunk": PREFILL_CHUNK,
        "model_type": config["model_type"],
        "model": {
            "n_layer": len(keys),
            "n_head": n_head,
            "n_kv_head": _static(keys[0].shape[1]),
            "head_dim": _static(keys[0].shape[3]),
            "n_embd": n_embd,
            "n_ctx": n_ctx,
            "vocab_size": _static(logits.shape[2]),
        },
        "tokens": token_facts(folder),
        "quantization": None,
        "versions": tool_versions(),
    }


def _static(size: int | ir.SymbolicDim | None) -> int:
    if not isinstance(size, int):
        raise CheckpointError(
            f"the exported graph has a dynamic size ({size}) where gptx needs a number"
        )
    return size


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def _silent():
    """Silence output, warnings and logs of optimum, transformers and the tracer."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)
