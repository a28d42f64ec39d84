"""An fp32 artifact in, a smaller one out: weights read back into the module, rounded, traced again, and proved against
the artifact they came from (or, with a checkpoint, against PyTorch). What optimum exported is rewritten as a graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gptx
from gpt_export.certificate.certify import Recording, complete, record_artifact, record_pytorch
from gpt_export.certificate.eval_text import MOST, Proof, proof
from gpt_export.export import Plan, prove, tool_versions
from gpt_export.graph.attention_forms import CacheForm
from gpt_export.graph.build import build_graph, save_beside, save_graph
from gpt_export.graph.decode_graph import write_decode_graph
from gpt_export.graph.layers import graph_layers
from gpt_export.graph.read_weights import load_gpt
from gpt_export.graph.stored_weights import check_half
from gpt_export.quantization.recipes import (
    SCHEMES,
    describe,
    precision_of,
    quantize_weights,
    scheme_name,
)
from gpt_export.side_files import (
    CARD,
    copy_side_files,
    write_card,
    write_genai_config,
)
from gpt_export.via_optimum.quantize import RECIPES, quantize_graph
from gptx.artifact.folders import MANIFEST, check_apart, check_output, kind_of, new_folder
from gptx.artifact.hashes import check_hashes
from gptx.artifact.layout import CUDA, DECODE, GRAPH
from gptx.artifact.manifest import Manifest, read_manifest
from gptx.errors import ArtifactError, UsageError
from gptx.parity.limits import limits_for
from gptx.parity.reference import Reference
from gptx.progress import stage
from gptx.system.cpu import cpu_features, cpu_name
from gptx_models.checkpoints.checkpoint import load_config, load_model
from gptx_models.gpt.config import GPTConfig

CALIBRATION = 8192  # tokens of the calibration text that are used: more gain little


def plan_quantize(manifest: Manifest, to: str) -> Plan:
    parameters = manifest.model.n_parameters
    scheme = SCHEMES.get(scheme_name(to, cpu_features()))
    weights = int((scheme.bytes_per_weight if scheme else 2.0) * parameters)
    logits = 4 * MOST * manifest.model.vocab_size
    return Plan(parameters, weights, weights + logits + 4_000_000, 9 * parameters + 800_000_000)


def quantize_artifact(
    source: Path,
    out: Path,
    *,
    to: str,
    checkpoint: Path | None = None,
    text: Path | None = None,
    calibration: Path | None = None,
    limits: Mapping[str, float] | None = None,
    accept: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Quantize the fp32 artifact `source` to `out` by recipe (a name in SCHEMES, int8, fp16); returns its certificate.

    checkpoint: compare with PyTorch on this checkpoint folder instead of with the fp32 artifact. calibration: the text that
    rounding is fitted to, by default pages of our own. The other options as in export_checkpoint. Raises UsageError,
    ArtifactError, OutputError, and ParityError when the certificate fails.
    """
    manifest, bounds = check_recipe(source, to, limits)
    needed = plan_quantize(manifest, to).disk_bytes
    with quantizing(
        manifest,
        out,
        checkpoint=checkpoint,
        text=text,
        calibration=calibration,
        needed=needed,
        force=force,
    ) as work:
        quantization = _write_graph(manifest, work.staging, to, work.calibration)
        return prove_quantized(
            work, precision_of(to), quantization, bounds, accept=accept, what=f"{to} of {source}"
        )


def check_recipe(
    source: Path, to: str, limits: Mapping[str, float] | None
) -> tuple[Manifest, dict[str, float]]:
    """What can be refused before anything is read but the manifest; also the limits of the certificate."""
    manifest = expect_fp32(source)
    if has_decode(to) and manifest.cache != "shared":
        raise UsageError(
            f"{to} has two graphs on one cache, which takes the form shared, and {source} has {manifest.cache}"
        )
    if gpt_config(manifest) is None and to not in RECIPES:
        raise UsageError(
            f"{source} was exported by optimum, which takes {', '.join(RECIPES)}, not {to}"
        )
    return manifest, limits_for(precision_of(to), limits)


@dataclass(frozen=True)
class Work:
    """What stands ready once the graph is to be written."""

    manifest: Manifest  # of the source
    staging: Path
    calibration: Proof
    recording: Recording
    earlier: list[dict[str, Any]]  # comparisons that led to the reference


@contextmanager
def quantizing(
    manifest: Manifest,
    out: Path,
    *,
    checkpoint: Path | None,
    text: Path | None,
    calibration: Path | None,
    needed: int,
    force: bool,
) -> Iterator[Work]:
    """All of a quantization but the graph and its proof, which the block adds: checks, the reference, the other files."""
    source = manifest.path
    for read in (source, checkpoint or source):
        check_apart(read, out)
    check_output(out, force=force, needed=needed)
    check_hashes(manifest)  # a damaged source must not get a new, good certificate
    with new_folder(out, force=force, needed=needed) as staging:
        shape = manifest.model
        text_proof = proof(source, vocab_size=shape.vocab_size, n_ctx=shape.n_ctx, text=text)
        own = calibration_of(manifest, calibration)
        with tempfile.NamedTemporaryFile(dir=staging.parent, prefix=".gptx-reference-") as scratch:
            recording = _record(manifest, checkpoint, text_proof, Path(scratch.name))
            copy_side_files(source, staging)
            carried = Reference.load(source, shape)
            complete(carried, recording, staging, manifest.raw["tokens"]).save(staging)
            earlier = manifest.raw["certificate"].get("chain", []) if checkpoint is None else []
            yield Work(manifest, staging, own, recording, earlier)
        write_card(staging, out.name, own_card(source))


def calibration_of(manifest: Manifest, text: Path | None) -> Proof:
    """The text that rounding is fitted to, as tokens; without one our own."""
    shape = manifest.model
    return proof(
        manifest.path,
        vocab_size=shape.vocab_size,
        n_ctx=shape.n_ctx,
        text=text,
        own="calibration",
        most=CALIBRATION,
    )


def prove_quantized(
    work: Work,
    precision: str,
    quantization: dict[str, Any],
    bounds: dict[str, float],
    *,
    accept: bool,
    what: str,
) -> dict[str, Any]:
    """The certificate of the graph that was written in work.staging; see prove."""
    facts = _facts(work.manifest, precision, quantization)
    write_genai_config(
        work.staging, facts["model"], facts["tokens"], shared=work.manifest.cache == "shared"
    )
    return prove(
        work.staging, facts, work.recording, bounds, accept=accept, what=what, earlier=work.earlier
    )


def has_decode(to: str) -> bool:
    return to in SCHEMES and SCHEMES[to].decode


def has_cuda(to: str, form: str) -> bool:
    return to == "fp16" and form == "shared"


def expect_fp32(source: Path) -> Manifest:
    """The manifest of an artifact that can be quantized; UsageError says what is wanted instead of anything else."""
    if (kind := kind_of(source)) in ("checkpoint", "adapter"):
        what = {"checkpoint": "a checkpoint folder", "adapter": "a LoRA adapter"}[kind]
        raise UsageError(
            f"{source} is {what}: export it first, `gptx export {source} OUT`, and quantize OUT"
        )
    manifest = read_manifest(source)
    if manifest.precision != "fp32":
        raise UsageError(
            f"{source} is {manifest.precision} already: quantize the fp32 artifact that it was made from"
        )
    return manifest


def _record(
    manifest: Manifest, checkpoint: Path | None, text_proof: Proof, scratch: Path
) -> Recording:
    if checkpoint is None:
        with gptx.load(manifest.path) as model:
            return record_artifact(model, text_proof, scratch)
    check_checkpoint(manifest, checkpoint)
    return record_pytorch(load_model(checkpoint), text_proof, scratch, manifest.cache)


def check_checkpoint(manifest: Manifest, checkpoint: Path) -> None:
    """Raises UsageError for a checkpoint of another shape, and CheckpointError for what is none."""
    config = gpt_config(manifest)
    if config is None or load_config(checkpoint).to_dict() != config.to_dict():
        raise UsageError(
            f"--checkpoint {checkpoint} is another model than {manifest.path}: their configurations differ"
        )


def gpt_config(manifest: Manifest) -> GPTConfig | None:
    """The configuration of the module behind an artifact; None for one that optimum exported. Raises ArtifactError."""
    values = manifest.raw.get("gpt_config")
    if not values:
        return None
    where = f"{manifest.path / MANIFEST}: gpt_config"
    try:
        config = GPTConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where} is of no model that gptx knows ({error})") from error
    shape = {
        name: getattr(manifest.model, name)
        for name in vars(manifest.model)
        if hasattr(config, name)
    }
    wrong = [
        f"{name} is {getattr(config, name)}, and the model's is {value}"
        for name, value in shape.items()
        if getattr(config, name) != value
    ]
    if wrong:
        raise ArtifactError(f"{where}: {'; '.join(wrong)}: export the artifact again")
    return config


def _write_graph(manifest: Manifest, staging: Path, to: str, calibration: Proof) -> dict[str, Any]:
    """Write the quantized graph; returns what gptx.json says of it."""
    config = gpt_config(manifest)
    if config is None:
        return quantize_graph(manifest.graph, staging / GRAPH, to)
    form: CacheForm = manifest.cache  # type: ignore[assignment]
    gpt = load_gpt(manifest.path, config)
    if to == "fp16":
        for weight_name, weight in gpt.named_parameters():
            check_half(weight, weight_name, str(manifest.path))
        half = graph_layers(gpt.half(), form)
        save_graph(build_graph(half, form), staging / "onnx")
        if has_cuda(to, form):
            save_beside(build_graph(half, "cuda"), staging / CUDA)
        return {"scheme": "fp16", "cache_dtype": "float16"}
    name = scheme_name(to, cpu_features())
    made = quantize_weights(gpt, SCHEMES[name], calibration.windows)
    with stage("Tracing the graph"):
        save_graph(build_graph(graph_layers(gpt, form, made.weights), form), staging / "onnx")
        if has_decode(to):
            write_decode_graph(gpt, form, staging)
    chosen = {"cpu": {"name": cpu_name(), "features": cpu_features()}} if name != to else {}
    return {**describe(name, made), **chosen, "calibration": calibration.description}


def _facts(manifest: Manifest, precision: str, quantization: dict[str, Any]) -> dict[str, Any]:
    """The source's manifest, with what has changed."""
    dropped = ("files", "certificate", "gptx_version", "compiled")
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


def own_card(source: Path) -> str | None:
    """What the source artifact's card says below the part that is written anew."""
    card = source / CARD
    marker = "`gptx verify` with this folder.\n"
    return card.read_text("utf-8").partition(marker)[2].strip() or None if card.exists() else None
