"""Quantize an fp32 artifact: round its weights, trace the graph again, and prove the result.

The reference of the proof is the fp32 artifact or, with a checkpoint, PyTorch. An artifact that
optimum exported has no PyTorch module here; its graph is rewritten (see via_optimum.quantize).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gptx
from gpt_export.certificate.certify import Recording, complete, record_artifact, record_pytorch
from gpt_export.certificate.eval_text import EvalText, load_eval_text
from gpt_export.certificate.prove import prove, tool_versions
from gpt_export.graph.attention_forms import CacheForm
from gpt_export.graph.build import build_graph, save_beside, save_graph
from gpt_export.graph.decode_graph import write_decode_graph
from gpt_export.graph.layers import graph_layers
from gpt_export.graph.native_layers import Native, native_layers
from gpt_export.graph.read_weights import load_gpt, position_tables
from gpt_export.graph.step_graph import CacheType
from gpt_export.graph.stored_weights import check_half
from gpt_export.graph.write_step_graph import (
    STEP_FACTS,
    add_step_graph,
    check_cache_type,
    note_no_step_graph,
    step_facts,
    with_cache_type,
    write_native_graph,
)
from gpt_export.plan import GRAPH_AND_SIDE_FILES, LIBRARIES, Plan, logits_bytes
from gpt_export.quantization.keep import (
    KEEP,
    choose_activations,
    describe_kept,
    keep_weights,
    portable_weights,
    precision_of_kept,
)
from gpt_export.quantization.recipes import (
    SCHEMES,
    describe,
    precision_of,
    quantize_weights,
    scheme_name,
)
from gpt_export.side_files import CARD, copy_side_files, write_card, write_genai_config
from gpt_export.via_optimum.quantize import RECIPES, quantize_graph
from gptx.artifact.folders import MANIFEST, check_apart, check_output, kind_of, new_folder
from gptx.artifact.hashes import check_hashes
from gptx.artifact.layout import CUDA, DECODE, GRAPH, STEP
from gptx.artifact.manifest import Manifest, read_manifest
from gptx.artifact.native_form import NO_OPTIMUM
from gptx.errors import ArtifactError, UsageError
from gptx.ort import native
from gptx.parity.limits import limits_for
from gptx.parity.reference import Reference
from gptx.progress import note, stage
from gptx.system.cpu import cpu_features, cpu_name
from gptx_models.checkpoints.checkpoint import load_config, load_model
from gptx_models.checkpoints.gguf_blocks import BLOCKS, check_blocks
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

WHY_NO_GRAPH = "ONNX Runtime's operators do not have these blocks"
CALIBRATION_TOKENS = 8192  # of the calibration text; more improve little


def plan_quantize(manifest: Manifest, to: str, checkpoint: Path | None = None) -> Plan:
    """Estimate a quantization by recipe. checkpoint: of keep, where the blocks are."""
    parameters = manifest.model.n_parameters
    scheme = SCHEMES.get(scheme_name(to, cpu_features()))
    weights = int((scheme.bytes_per_weight if scheme else 2.0) * parameters)
    if to == KEEP and checkpoint is not None:
        weights = (checkpoint / BLOCKS).stat().st_size
    logits = logits_bytes(manifest.model.vocab_size)
    return Plan(
        parameters,
        artifact_bytes=weights,
        disk_bytes=weights + logits + GRAPH_AND_SIDE_FILES,
        memory_bytes=9 * parameters + LIBRARIES,
    )


def quantize_artifact(
    source: Path,
    out: Path,
    *,
    to: str,
    cache_type: CacheType | None = None,
    checkpoint: Path | None = None,
    text: Path | None = None,
    calibration: Path | None = None,
    limits: Mapping[str, float] | None = None,
    accept: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Quantize the fp32 artifact `source` to the folder `out`; returns the certificate.

    to: a recipe, that is a name in SCHEMES, int8, fp16 or keep. cache_type: the type of the step
    graph's cache, by default fp16 (keep: of weights that are all in fp32, fp32). checkpoint:
    compare with PyTorch on this checkpoint folder instead of with `source`; of keep, the folder
    with the blocks, and `source` is compared with. calibration: the UTF-8 text that weights are
    rounded on (of keep: that activations are measured on), by default our own. The other options
    are those of export_checkpoint, as is the step graph.

    Raises UsageError, ArtifactError, OutputError, and ParityError when the certificate fails.
    """
    manifest, bounds = check_recipe(source, to, limits, cache_type)
    kept = _kept(manifest, expect_blocks(manifest, checkpoint)) if to == KEEP else None
    needed = plan_quantize(manifest, to, checkpoint).disk_bytes
    with open_workspace(
        manifest,
        out,
        checkpoint=checkpoint if kept is None else None,
        text=text,
        calibration=calibration,
        needed=needed,
        force=force,
    ) as workspace:
        if kept is None:
            quantization = _write_graph(workspace, to, cache_type)
            precision = precision_of(to)
        else:
            precision, quantization = _write_kept(workspace, kept, cache_type)
        what = with_cache_type(f"{to} of {source}", cache_type)
        return prove_quantized(workspace, precision, quantization, bounds, accept=accept, what=what)


def expect_blocks(manifest: Manifest, checkpoint: Path | None) -> Path:
    """The checkpoint whose blocks --to keep takes; it must be of the artifact's configuration.

    Raises UsageError, which says what to do, also on a machine without native operators, where the
    artifact could not be proved; CheckpointError if the folder is no checkpoint or has no blocks.
    """
    if checkpoint is None:
        raise UsageError(
            "--to keep takes the blocks that gptx import found in a GGUF file: name the folder that"
            " it wrote, with --checkpoint FOLDER"
        )
    check_checkpoint(manifest, checkpoint)
    check_blocks(checkpoint)
    if native.choose_kernels(1) is None:
        raise UsageError(
            "--to keep makes an artifact of native operators, and none run here"
            f" ({native.describe()})"
        )
    return checkpoint


def check_recipe(
    source: Path,
    to: str,
    limits: Mapping[str, float] | None,
    cache_type: CacheType | None = None,
) -> tuple[Manifest, dict[str, float]]:
    """Check a recipe against the manifest alone; returns the manifest and the certificate's limits.

    Raises UsageError if `source` cannot be quantized by this recipe or with this cache, or a limit
    has an unknown name.
    """
    manifest = expect_fp32(source)
    if has_decode(to) and manifest.cache != "shared":
        raise UsageError(
            f"{to} has two graphs on one cache, which takes the form shared,"
            f" and {source} has {manifest.cache}"
        )
    config = gpt_config(manifest)
    check_cache_type(cache_type, config)
    if config is None and to not in RECIPES:
        raise UsageError(
            f"{source} was exported by optimum, which takes {', '.join(RECIPES)}, not {to}"
        )
    # Kept weights are not rounded, so activations alone must stay inside the limits of int8.
    return manifest, limits_for("int8" if to == KEEP else precision_of(to), limits)


@dataclass(frozen=True)
class Workspace:
    """The staging folder of a quantization that still lacks its graph, and what the graph needs."""

    manifest: Manifest  # of the source
    staging: Path
    calibration: EvalText
    recording: Recording
    earlier: list[dict[str, Any]]  # certificate chain of the source, if it is the reference


@contextmanager
def open_workspace(
    manifest: Manifest,
    out: Path,
    *,
    checkpoint: Path | None,
    text: Path | None,
    calibration: Path | None,
    needed: int,
    force: bool,
) -> Iterator[Workspace]:
    """Check source and output, record the reference, and copy the side files to a staging folder.

    The caller adds graph and certificate inside the block; afterwards the staging folder becomes
    `out`. needed: free bytes that the disk must have. Raises what quantize_artifact raises.
    """
    source = manifest.path
    for read in (source, checkpoint or source):
        check_apart(read, out)
    check_output(out, force=force, needed=needed)
    check_hashes(manifest)  # a damaged source must not get a new, good certificate
    with new_folder(out, force=force, needed=needed) as staging:
        shape = manifest.model
        proof = load_eval_text(source, vocab_size=shape.vocab_size, n_ctx=shape.n_ctx, text=text)
        calibration_text = load_calibration(manifest, calibration)
        with tempfile.NamedTemporaryFile(dir=staging.parent, prefix=".gptx-reference-") as scratch:
            recording = _record(manifest, checkpoint, proof, Path(scratch.name))
            copy_side_files(source, staging)
            carried = Reference.load(source, shape)
            complete(carried, recording, staging, manifest.raw["tokens"]).save(staging)
            earlier = manifest.raw["certificate"].get("chain", []) if checkpoint is None else []
            yield Workspace(manifest, staging, calibration_text, recording, earlier)
        write_card(staging, out.name, source_card(source))


def load_calibration(manifest: Manifest, text: Path | None) -> EvalText:
    """The text that weights are rounded on: the user's file, or the one that comes with gptx."""
    shape = manifest.model
    return load_eval_text(
        manifest.path,
        vocab_size=shape.vocab_size,
        n_ctx=shape.n_ctx,
        text=text,
        own="calibration",
        most=CALIBRATION_TOKENS,
    )


def prove_quantized(
    workspace: Workspace,
    precision: str,
    quantization: dict[str, Any],
    bounds: dict[str, float],
    *,
    accept: bool,
    what: str,
) -> dict[str, Any]:
    """Prove the graph in workspace.staging; returns its certificate (see certificate.prove).

    quantization: that part of gptx.json. bounds: the certificate's limits.
    """
    manifest, staging = workspace.manifest, workspace.staging
    facts = _facts(manifest, precision, quantization)
    facts |= step_facts(staging)
    shared = manifest.cache == "shared"
    if (staging / GRAPH).exists():
        write_genai_config(staging, facts["model"], facts["tokens"], shared=shared)
    return prove(
        staging,
        facts,
        workspace.recording,
        bounds,
        accept=accept,
        what=what,
        earlier=workspace.earlier,
    )


def has_decode(to: str) -> bool:
    """True for a recipe with a second graph for single rows."""
    return to in SCHEMES and SCHEMES[to].decode


def has_cuda(to: str, form: str) -> bool:
    """True for a recipe and cache form with a second graph for CUDA."""
    return to == "fp16" and form == "shared"


def expect_fp32(source: Path) -> Manifest:
    """The manifest of an fp32 artifact. Raises UsageError, with the remedy, for other folders."""
    if (kind := kind_of(source)) in ("checkpoint", "adapter"):
        what = {"checkpoint": "a checkpoint folder", "adapter": "a LoRA adapter"}[kind]
        raise UsageError(
            f"{source} is {what}: export it first, `gptx export {source} OUT`, and quantize OUT"
        )
    manifest = read_manifest(source)
    if manifest.precision != "fp32":
        raise UsageError(
            f"{source} is {manifest.precision} already: quantize the fp32 artifact that it was"
            " made from"
        )
    return manifest


def _record(
    manifest: Manifest, checkpoint: Path | None, proof: EvalText, scratch: Path
) -> Recording:
    """Record the reference: the fp32 artifact or, with a checkpoint, PyTorch."""
    if checkpoint is None:
        with gptx.load(manifest.path) as model:
            return record_artifact(model, proof, scratch)
    check_checkpoint(manifest, checkpoint)
    return record_pytorch(load_model(checkpoint), proof, scratch, manifest.cache)


def check_checkpoint(manifest: Manifest, checkpoint: Path) -> None:
    """Raise UsageError if the checkpoint has another configuration than the artifact.

    Raises CheckpointError if `checkpoint` is no checkpoint folder.
    """
    config = gpt_config(manifest)
    if config is None or load_config(checkpoint).to_dict() != config.to_dict():
        raise UsageError(
            f"--checkpoint {checkpoint} is another model than {manifest.path}:"
            " their configurations differ"
        )


def gpt_config(manifest: Manifest) -> GPTConfig | None:
    """The configuration of the GPT module behind an artifact; None if optimum exported it.

    Raises ArtifactError if gpt_config of gptx.json is damaged or contradicts `model` there.
    """
    values = manifest.raw.get("gpt_config")
    if not values:
        return None
    where = f"{manifest.path / MANIFEST}: gpt_config"
    try:
        config = GPTConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where} is of no model that gptx knows ({error})") from error
    wrong = [
        f"{name} is {getattr(config, name)}, and the model's is {value}"
        for name, value in vars(manifest.model).items()
        if getattr(config, name, value) != value
    ]
    if wrong:
        raise ArtifactError(f"{where}: {'; '.join(wrong)}: export the artifact again")
    return config


def _write_graph(workspace: Workspace, to: str, cache_type: CacheType | None) -> dict[str, Any]:
    """Write the quantized graphs; returns `quantization` of gptx.json."""
    manifest, calibration, staging = workspace.manifest, workspace.calibration, workspace.staging
    config = gpt_config(manifest)
    if config is None:
        note_no_step_graph(NO_OPTIMUM)
        return quantize_graph(manifest.graph, staging / GRAPH, to)
    form: CacheForm = manifest.cache  # type: ignore[assignment]
    gpt = load_gpt(manifest.path, config)
    if to == "fp16":
        return _write_half(gpt, form, staging, cache_type, where=str(manifest.path))
    name = scheme_name(to, cpu_features())
    made = quantize_weights(gpt, SCHEMES[name], calibration.windows)
    with stage("Tracing the graph"):
        save_graph(build_graph(graph_layers(gpt, form, made.weights), form), staging / "onnx")
        add_step_graph(gpt, staging, cache_type)
        if has_decode(to):
            write_decode_graph(gpt, form, staging)
    chosen = {"cpu": {"name": cpu_name(), "features": cpu_features()}} if name != to else {}
    return {**describe(name, made), **chosen, "calibration": calibration.description}


def _kept(manifest: Manifest, checkpoint: Path) -> dict[str, Native]:
    """The blocks of `checkpoint` as weights; their values are those of the artifact."""
    config = gpt_config(manifest)
    assert config is not None  # expect_blocks has compared it
    with stage("Comparing the blocks with the weights"):
        return keep_weights(load_gpt(manifest.path, config), checkpoint, manifest.path)


def _write_kept(
    workspace: Workspace, kept: dict[str, Native], cache_type: CacheType | None
) -> tuple[str, dict[str, Any]]:
    """Write the graphs of a GGUF file's blocks; returns precision and `quantization`.

    model.onnx is written if its operators have all of the blocks.
    """
    manifest, calibration, staging = workspace.manifest, workspace.calibration, workspace.staging
    config = gpt_config(manifest)
    assert config is not None
    gpt = load_gpt(manifest.path, config)
    weights, costs = choose_activations(gpt, kept, calibration.windows[0])
    with stage("Writing the graphs"):
        if (portable := portable_weights(weights)) is not None:
            form: CacheForm = manifest.cache  # type: ignore[assignment]
            save_graph(build_graph(graph_layers(gpt, form, portable), form), staging / "onnx")
            gpt = load_gpt(manifest.path, config)
        write_native_graph(native_layers(gpt, weights), staging, cache_type)
    note(_sizes(staging))
    facts = {**describe_kept(weights, costs), "calibration": calibration.description}
    return precision_of_kept(weights), facts


def _sizes(staging: Path) -> str:
    """What the graphs of `keep` take, and whom model.onnx is for."""
    sizes = {file.name: file.stat().st_size / 1e6 for file in (staging / GRAPH).parent.iterdir()}
    step = sum(size for name, size in sizes.items() if name.startswith("step"))
    main = sum(sizes.values()) - step
    if not main:
        return f"{STEP} with its weights: {step:,.1f} MB; {GRAPH} is not written: {WHY_NO_GRAPH}"
    return (
        f"{GRAPH} with its weights, for other loaders: {main:,.1f} MB;"
        f" {STEP} takes {step:,.1f} MB more"
    )


def _write_half(
    gpt: GPT, form: CacheForm, staging: Path, cache_type: CacheType | None, *, where: str
) -> dict[str, Any]:
    """Write `gpt` in fp16, with the graph for CUDA where the form has one."""
    for name, weight in gpt.named_parameters():
        check_half(weight, name, where)
    half = graph_layers(gpt.half(), form)
    save_graph(build_graph(half, form), staging / "onnx")
    if has_cuda("fp16", form):
        save_beside(build_graph(half, "cuda"), staging / CUDA)
    # native operators compute in fp32, with tables of positions that are not rounded
    half._buffers.update(position_tables(half.config))
    add_step_graph(half, staging, cache_type)
    return {"scheme": "fp16", "cache_dtype": "float16"}


def _facts(manifest: Manifest, precision: str, quantization: dict[str, Any]) -> dict[str, Any]:
    """gptx.json of the source, with the values that a quantization changes."""
    dropped = ("files", "certificate", "gptx_version", "compiled", "upgraded", *STEP_FACTS)
    kept = {key: value for key, value in manifest.raw.items() if key not in dropped}
    return {
        **kept,
        "precision": precision,
        "cache_dtype": quantization.get("cache_dtype", "float32"),
        "quantization": quantization,
        **({"decode": DECODE} if has_decode(quantization["scheme"]) else {}),
        **({"cuda": CUDA} if has_cuda(quantization["scheme"], manifest.cache) else {}),
        "versions": tool_versions(),
    }


def source_card(source: Path) -> str | None:
    """The checkpoint's own model card, which stands at the end of an artifact's README.md."""
    card = source / CARD
    marker = "`gptx verify` with this folder.\n"
    return card.read_text("utf-8").partition(marker)[2].strip() or None if card.exists() else None
