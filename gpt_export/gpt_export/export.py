"""Export a checkpoint folder to an fp32 artifact: trace, write, and prove against PyTorch."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_export.certificate.certify import record_pytorch
from gpt_export.certificate.eval_text import load_eval_text
from gpt_export.certificate.prove import prove, reference_budget, tool_versions
from gpt_export.genai_search import note_unsupported
from gpt_export.graph.attention_forms import PREFILL_CHUNK, CacheForm, choose_form
from gpt_export.graph.build import build_graph, save_graph
from gpt_export.graph.layers import graph_layers
from gpt_export.graph.step_graph import CacheType
from gpt_export.graph.write_step_graph import (
    add_step_graph,
    check_cache_type,
    step_facts,
    with_cache_type,
)
from gpt_export.plan import plan_export
from gpt_export.side_files import read_json, token_facts, write_card, write_genai_config
from gpt_export.source_checkpoint import expect_checkpoint, hash_weights
from gptx.artifact.folders import check_apart, check_output, new_folder
from gptx.ort.library import onnxruntime
from gptx.parity.limits import limits_for
from gptx.progress import note, stage
from gptx_models.checkpoints.checkpoint import load_config, load_head, load_model, write_configs
from gptx_models.checkpoints.side_files import CARD, read_side_files
from gptx_models.checkpoints.tensor_files import open_folder
from gptx_models.gpt.attention import ADDITIVE_CHUNK
from gptx_models.gpt.config import GPTConfig
from gptx_models.importers.huggingface import source_of


def export_checkpoint(
    source: Path,
    out: Path,
    *,
    cache: CacheForm | None = None,
    cache_type: CacheType | None = None,
    text: Path | None = None,
    limits: Mapping[str, float] | None = None,
    accept: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Export the checkpoint folder `source` to the artifact folder `out`; returns its certificate.

    cache: the form of the KV cache, by default the one that suits the model. cache_type: the type
    of the step graph's cache, by default fp32. text: a UTF-8 file to compare on, by default our
    own. limits: overrides of gptx.parity.limits. accept: write the artifact even if it is outside
    its limits. force: replace `out`.

    The step graph is written too, if native operators have a form for the model; else a note says
    why not.

    Raises CheckpointError, OutputError, UsageError, and ParityError when the certificate fails. In
    each of these cases nothing is written.
    """
    expect_checkpoint(source)
    onnxruntime()  # the proof needs it: fail now rather than after the tracing
    config = load_config(source)
    side_files = read_side_files(source, config.vocab_size, tell=note)
    source_card = side_files.kept.pop(CARD, None)
    form = choose_form(config, cache)
    check_cache_type(cache_type, config)
    note_unsupported(side_files.generation, genai=not config.n_class)
    bounds = limits_for("fp32", limits)
    plan = plan_export(config)
    check_apart(source, out)
    check_output(out, force=force, needed=plan.disk_bytes)
    with new_folder(out, force=force, needed=plan.disk_bytes) as staging:
        side_files.write(staging)
        write_configs(staging, config, side_files.generation, load_head(source))
        facts = _manifest_facts(staging, config, form, plan.parameters)
        proof = load_eval_text(staging, vocab_size=config.vocab_size, n_ctx=config.n_ctx, text=text)
        with tempfile.NamedTemporaryFile(dir=staging.parent, prefix=".gptx-reference-") as scratch:
            with stage("Loading the checkpoint"):
                gpt = load_model(source)
            recording = record_pytorch(gpt, proof, Path(scratch.name), form)
            with stage("Tracing the graph"):
                graph = build_graph(graph_layers(gpt, form), form)
            with stage("Writing the weights"):
                save_graph(graph, staging / "onnx")
                add_step_graph(gpt, staging, cache_type)
            del gpt, graph  # free PyTorch's weights before ONNX Runtime loads its own
            gc.collect()
            facts["source"] = _source_facts(source, config)
            facts |= step_facts(staging)
            write_genai_config(staging, facts["model"], facts["tokens"], shared=form == "shared")
            budget = reference_budget(plan.parameters)
            recording.reference(budget, staging, facts["tokens"]).save(staging)
            what = with_cache_type(f"the export of {source}", cache_type)
            certificate = prove(staging, facts, recording, bounds, accept=accept, what=what)
        write_card(staging, out.name, source_card)
    return certificate


def _source_facts(source: Path, config: GPTConfig) -> dict[str, Any]:
    """`source` in gptx.json: where the checkpoint came from, and the hashes of its weights."""
    return {**source_of(source, config, open_folder(source)), **hash_weights(source)}


def _manifest_facts(
    folder: Path, config: GPTConfig, form: CacheForm, parameters: int
) -> dict[str, Any]:
    """Values of gptx.json that describe the model. `folder` holds config.json and the tokenizer."""
    additive = any(config.attention_of(i) == "additive" for i in range(config.n_layer))
    return {
        "precision": "fp32",
        "cache": form,
        "cache_dtype": "float32",
        "prefill_chunk": ADDITIVE_CHUNK if additive else PREFILL_CHUNK,
        "model_type": read_json(folder / "config.json").get("model_type", "gptx"),
        "model": {
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_kv_head": config.n_kv_head,
            "head_dim": config.head_dim,
            "n_embd": config.n_embd,
            "n_ctx": config.n_ctx,
            "vocab_size": config.vocab_size,
            "n_parameters": parameters,
            **({"n_class": config.n_class} if config.n_class else {}),
        },
        "gpt_config": config.to_dict(),
        "tokens": token_facts(folder),
        "quantization": None,
        "versions": tool_versions(),
    }
