"""The last stage of every export and quantization: load the new artifact and prove it.

In: an artifact folder that has everything but its manifest, and the recorded reference. Out:
gptx.json with the parity certificate, or a ParityError.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gptx
from gpt_export.certificate.certify import Recording, certify
from gpt_export.certificate.portable import measure_portable
from gpt_export.side_files import write_json, write_manifest
from gptx.artifact.folders import MANIFEST
from gptx.errors import GptxWarning, ParityError
from gptx.parity.reference import Reference
from gptx.parity.seal import seal_of, write_seal
from gptx.progress import note, stage


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
    """Compare the artifact in `staging` with its reference; write the certificate to gptx.json.

    The artifact is loaded in the runtime, as a user loads it. If its step graph runs here, the
    certificate is that of the step graph, and model.onnx is measured as well if there is one.

    facts: the values of gptx.json without format, files and certificate. earlier: the certificate
    chain of the artifact that served as the reference. Returns the certificate.

    Raises ParityError, which names `what`, if a figure is outside `limits` and `accept` is false.
    """
    manifest = write_manifest(staging, facts)
    with stage("Loading the artifact"), warnings.catch_warnings():
        # the same warnings were given when the checkpoint was read
        warnings.simplefilter("ignore", GptxWarning)
        model = gptx.load(staging)
    with model:
        reference = Reference.load(staging, model.manifest.model)
        certificate = certify(recording, model, limits, reference)
    if model.kernels and not model.manifest.native_only:
        _add_portable(certificate, staging, reference, limits)
    _check_limits(certificate, accept=accept, what=what)
    certificate["chain"] = _chain(certificate, earlier)
    proved = {**manifest, "certificate": certificate}
    write_json(staging / MANIFEST, write_seal(staging, proved, reference, seal_of(proved)))
    return certificate


def _add_portable(
    certificate: dict[str, Any], staging: Path, reference: Reference, limits: dict[str, float]
) -> None:
    """Add the figures of model.onnx to the certificate of the step graph."""
    certificate["portable"], outside = measure_portable(staging, reference, limits)
    certificate["outside"] += outside
    certificate["passed"] = not certificate["outside"]


def reference_budget(parameters: int) -> int:
    """Bytes for gptx_reference.safetensors: 2% of a model's int8 weights, 48 kB to 1.9 MB."""
    return min(1_900_000, max(48_000, parameters // 50))


def tool_versions() -> dict[str, str]:
    """Versions of the packages that write and check the graph, for gptx.json."""
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


def _check_limits(certificate: dict[str, Any], *, accept: bool, what: str) -> None:
    """Raise ParityError for a failed certificate; with `accept`, mark it as accepted and say so."""
    if certificate["passed"]:
        return
    problems = "; ".join(certificate["outside"])
    if not accept:
        raise ParityError(
            f"{what} is outside its limits ({problems}): nothing was written,"
            " --accept writes it anyway"
        )
    certificate["accepted"] = True
    note(f"Outside its limits and accepted: {problems}")


def _chain(certificate: dict[str, Any], earlier: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All comparisons from PyTorch to this artifact, in order.

    Two or more are followed by the sum of their `max_abs`: an upper bound for the difference
    between this artifact's logits and PyTorch's.
    """
    keys = ("max_abs", "kl_mean", "same_top1", "perplexity_reference", "perplexity")
    figures = {key: certificate["figures"][key] for key in keys}
    links = [*earlier, {"against": certificate["against"], **figures}]
    if not earlier:
        return links
    return [*links, {"against": "sum", "max_abs": sum(entry["max_abs"] for entry in links)}]
