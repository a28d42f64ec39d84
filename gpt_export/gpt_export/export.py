"""A checkpoint folder in, an fp32 artifact out: traced, written, loaded again in the runtime and proved against PyTorch."""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gptx
from gpt_export.certificate.certify import Recording, certify, record_pytorch
from gpt_export.certificate.eval_text import MOST, proof
from gpt_export.genai_search import tell
from gpt_export.graph.attention_forms import CacheForm, default_form, why_not
from gpt_export.graph.build import build_graph, save_graph
from gpt_export.graph.layers import graph_layers
from gpt_export.side_files import (
    hash_folder,
    read_json,
    token_facts,
    write_card,
    write_genai_config,
    write_json,
    write_manifest,
)
from gptx.artifact.folders import MANIFEST, check_apart, check_output, kind_of, new_folder
from gptx.errors import CheckpointError, GptxWarning, ParityError, UsageError
from gptx.ort.library import onnxruntime
from gptx.parity.limits import limits_for
from gptx.parity.reference import Reference
from gptx.parity.seal import seal_of, write_seal
from gptx.progress import note, stage
from gptx_models.checkpoints.checkpoint import load_config, load_head, load_model, write_configs
from gptx_models.checkpoints.side_files import CARD, read_side_files
from gptx_models.checkpoints.tensor_files import open_folder
from gptx_models.gpt.attention import ADDITIVE_CHUNK
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT
from gptx_models.importers.huggingface import source_of

PREFILL_CHUNK = 256  # GroupQueryAttention scores every key of a piece and masks afterwards: half of 512 is 4% faster


@dataclass(frozen=True)
class Plan:
    """What an export or a quantization will take, for --dry-run and for the check of the disk."""

    parameters: int
    artifact_bytes: int
    disk_bytes: int  # while it is made: the reference's logits lie beside it
    memory_bytes: int


def plan_export(config: GPTConfig) -> Plan:
    parameters = count_parameters(config)
    weights = 4 * parameters
    logits = 4 * MOST * config.vocab_size
    # PyTorch's weights and one transposed at a time; then ONNX Runtime's: the mapped file and the packed copy
    return Plan(parameters, weights, weights + logits + 4_000_000, int(2.2 * weights) + 800_000_000)


def count_parameters(config: GPTConfig) -> int:
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in GPT(config).parameters())


def export_checkpoint(
    source: Path,
    out: Path,
    *,
    cache: CacheForm | None = None,
    text: Path | None = None,
    limits: Mapping[str, float] | None = None,
    accept: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Export the checkpoint folder `source` to the artifact folder `out`; returns its certificate.

    cache: the cache form, by default the one that suits the model. text: the proof text. limits: overrides of
    gptx.parity.limits. accept: write the artifact even outside them. Raises CheckpointError, OutputError, UsageError,
    and ParityError when the certificate fails; then nothing is written.
    """
    expect_checkpoint(source)
    onnxruntime()  # the proof needs it: an error now, not after the tracing
    config = load_config(source)
    side = read_side_files(source, config.vocab_size, tell=note)
    card = side.kept.pop(CARD, None)
    form = choose_form(config, cache)
    tell(side.generation, genai=not config.n_class)
    bounds = limits_for("fp32", limits)
    needed = plan_export(config).disk_bytes
    check_apart(source, out)
    check_output(out, force=force, needed=needed)
    with new_folder(out, force=force, needed=needed) as staging:
        side.write(staging)
        write_configs(staging, config, side.generation, load_head(source))
        text_proof = proof(staging, vocab_size=config.vocab_size, n_ctx=config.n_ctx, text=text)
        with stage("Loading the checkpoint"):
            gpt = load_model(source)
        with tempfile.NamedTemporaryFile(dir=staging.parent, prefix=".gptx-reference-") as scratch:
            recording = record_pytorch(gpt, text_proof, Path(scratch.name), form)
            with stage("Tracing the graph"):
                graph = build_graph(graph_layers(gpt, form), form)
            with stage("Writing the weights"):
                save_graph(graph, staging / "onnx")
            parameters = count_parameters(config)
            del gpt, graph  # PyTorch's copy goes before ONNX Runtime makes its own
            gc.collect()
            facts = manifest_facts(staging, config, form, parameters)
            facts["source"] = {
                **source_of(source, config, open_folder(source)),
                **weights_hash(source),
            }
            write_genai_config(staging, facts["model"], facts["tokens"], shared=form == "shared")
            recording.reference(reference_budget(parameters), staging, facts["tokens"]).save(
                staging
            )
            certificate = prove(
                staging, facts, recording, bounds, accept=accept, what=f"the export of {source}"
            )
        write_card(staging, out.name, card)
    return certificate


def prove(
    staging: Path,
    facts: dict[str, Any],
    recording: Recording,
    limits: dict[str, float],
    *,
    accept: bool,
    what: str,
    earlier: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The last stage of export and quantize: the artifact in `staging` is loaded as a user loads it and compared with
    its reference, and gptx.json takes the certificate. `earlier` are the comparisons that led to the reference.

    Raises ParityError, naming `what`, outside the limits.
    """
    manifest = write_manifest(staging, facts)
    with stage("Loading the artifact"), warnings.catch_warnings():
        warnings.simplefilter("ignore", GptxWarning)  # what it warns of was said of the checkpoint
        model = gptx.load(staging)
    with model:
        reference = Reference.load(staging, model.manifest.model)
        certificate = certify(recording, model, limits, reference)
    settle(certificate, accept=accept, what=what)
    certificate["chain"] = chain(certificate, earlier)
    proved = {**manifest, "certificate": certificate}
    write_json(staging / MANIFEST, write_seal(staging, proved, reference, seal_of(proved)))
    return certificate


def expect_checkpoint(source: Path) -> None:
    kind = kind_of(source)
    if kind == "artifact":
        raise UsageError(
            f"{source} is an artifact already: run it with `gptx run -m {source}`, export takes a checkpoint"
        )
    if kind == "adapter":
        raise CheckpointError(
            f"{source} is a LoRA adapter (it has adapter_config.json): gptx merge {source} OUT makes a checkpoint"
            " of it and its base"
        )
    if kind == "missing":
        raise CheckpointError(
            f"{source} does not exist: give a checkpoint folder, or what `gptx import` takes"
        )
    if kind != "checkpoint":
        raise CheckpointError(
            f"{source} is no checkpoint folder: it has no config.json; see `gptx import --help`"
        )


def choose_form(config: GPTConfig, asked: CacheForm | None) -> CacheForm:
    """The cache form asked for, or the one that suits; UsageError where the first cannot be had."""
    form, reason = default_form(config)
    if asked is None:
        if reason:
            note(reason)
        return form
    refusal = why_not(config, asked)
    if refusal:
        raise UsageError(f"--cache {asked}: {refusal}")
    return asked


def manifest_facts(
    folder: Path, config: GPTConfig, form: CacheForm, parameters: int
) -> dict[str, Any]:
    """What gptx.json says of the model."""
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


def tool_versions() -> dict[str, str]:
    import onnx_ir
    import onnxruntime
    import onnxscript
    import torch

    modules = {
        "torch": torch,
        "onnxscript": onnxscript,
        "onnx_ir": onnx_ir,
        "onnxruntime": onnxruntime,
    }
    return {name: module.__version__ for name, module in modules.items()}


def weights_hash(checkpoint: Path) -> dict[str, Any]:
    """The hash of the weights that were exported."""
    return {"checkpoint_sha256": hash_folder(checkpoint, ("*.safetensors", "*.bin"))}


def reference_budget(parameters: int) -> int:
    """Bytes for gptx_reference.safetensors: under 2 MB, and 2% of a small model's int8 weights."""
    return min(1_900_000, max(48_000, parameters // 50))


def settle(certificate: dict[str, Any], *, accept: bool, what: str) -> None:
    """ParityError for a certificate that is outside its limits, unless it is accepted; then it says so."""
    if certificate["passed"]:
        return
    problems = "; ".join(certificate["outside"])
    if not accept:
        raise ParityError(
            f"{what} is outside its limits ({problems}): nothing was written, --accept writes it anyway"
        )
    certificate["accepted"] = True
    note(f"Outside its limits and accepted: {problems}")


def chain(certificate: dict[str, Any], earlier: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons from PyTorch to this artifact; of several, what their largest differences add up to at most."""
    links = [*earlier, link(certificate)]
    if not earlier:
        return links
    return [*links, {"against": "sum", "max_abs": sum(entry["max_abs"] for entry in links)}]


def link(certificate: dict[str, Any]) -> dict[str, Any]:
    """One comparison of the chain from PyTorch to this artifact."""
    keys = ("max_abs", "kl_mean", "same_top1", "perplexity_reference", "perplexity")
    return {"against": certificate["against"], **{key: certificate["figures"][key] for key in keys}}
