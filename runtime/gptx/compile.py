"""An artifact in, the same artifact with a graph compiled for this kind of machine out: optimized by ONNX Runtime, its
weights packed as this processor's kernels read them, in a file that several processes map and share.

The portable graph stays as it is, for every other machine and loader; compiled.py says which of the two is opened.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gptx.artifact.folders import MANIFEST, check_apart, check_output, new_folder
from gptx.artifact.hashes import check_hashes, sha256
from gptx.artifact.manifest import Manifest, read_manifest
from gptx.errors import ArtifactError, ParityError, ProviderError
from gptx.ort import compiled
from gptx.ort.library import first_line
from gptx.ort.sessions import save_optimized
from gptx.parity.reference import Reference
from gptx.parity.seal import Seal, seal_of, write_seal
from gptx.progress import stage
from gptx.verify import Report, checked_certificate, verify

CARD = (
    "README.md"  # the one file of an artifact, beside its manifest, that the manifest does not list
)


def compile_artifact(
    source: Path, out: Path, *, accept: bool = False, force: bool = False
) -> Report:
    """Compile the artifact `source` to `out`, and prove the compiled graph there; an earlier compiled part is replaced.

    accept: write it even where it is outside the certificate's limits; gptx.json then says so. Raises UsageError,
    ArtifactError, ProviderError, OutputError, and ParityError when the proof fails.
    """
    manifest = read_manifest(source)
    checked_certificate(manifest)
    check_apart(source, out)
    portable = {name: facts for name, facts in manifest.files.items() if name not in compiled.FILES}
    # for each graph the weights once as they are, and up to 1.2 times packed: the block sums of MatMulNBits come on top
    # (fp16 is computed in floats here)
    copies = 4.4 if manifest.decode or manifest.precision == "fp16" else 2.2
    needed = sum(
        f.size + (copies * f.size if name.startswith("onnx/") else 0)
        for name, f in portable.items()
    )
    check_output(out, force=force, needed=int(needed))
    check_hashes(manifest)
    reference = Reference.load(source, manifest.model)
    with new_folder(out, force=force, needed=int(needed)) as staging:
        for name in [*portable, *([CARD] if (source / CARD).exists() else [])]:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, staging / name)
        with stage("Compiling"):
            _compile(manifest, staging)
        raw = {
            **manifest.raw,
            "compiled": compiled.facts(),
            "files": _files(manifest, staging, list(portable)),
        }
        _write_manifest(staging, raw, reference)
        with stage("Proving"):
            report = verify(staging)
        expected = (compiled.GRAPH, compiled.DECODE if manifest.decode else "")
        _check(report, expected, accept=accept, what=f"the compiled graph of {source}")
        if not report.passed:
            raw["compiled"]["accepted"] = True
            _write_manifest(staging, raw, reference)
    return report


def _compile(manifest: Manifest, staging: Path) -> None:
    (staging / compiled.GRAPH).parent.mkdir()
    _compile_graph(manifest.graph, staging / compiled.GRAPH, compiled.WEIGHTS)
    if manifest.decode:
        _compile_graph(manifest.decode, staging / compiled.DECODE, compiled.DECODE_WEIGHTS)


def _compile_graph(graph: Path, out: Path, weights: str) -> None:
    try:
        save_optimized(graph, out, Path(weights).name)
    except ProviderError:
        raise
    except Exception as error:  # ORT has one exception class per status code and no base of its own
        raise ArtifactError(
            f"{graph}: ONNX Runtime cannot compile it: {first_line(error)}"
        ) from error


def _files(manifest: Manifest, staging: Path, portable: list[str]) -> dict[str, Any]:
    """What gptx.json says of the files: the portable ones' hashes were checked before they were copied."""
    files = {name: manifest.raw["files"][name] for name in portable}
    for name in compiled.FILES:
        if (
            file := staging / name
        ).exists():  # a graph whose weights are all small keeps them inside
            files[name] = {"sha256": sha256(file), "size": file.stat().st_size}
    return files


def _write_manifest(staging: Path, raw: dict[str, Any], reference: Reference) -> None:
    if reference.seal:
        raw = write_seal(staging, raw, reference, _with_compiled(reference.seal, seal_of(raw)))
    (staging / MANIFEST).write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _with_compiled(seal: Seal, now: Seal) -> Seal:
    """`seal`, of the artifact when it was made, with what compiling adds to it."""
    files = {name: digest for name, digest in seal["files"].items() if name not in compiled.FILES}
    files |= {name: digest for name, digest in now["files"].items() if name in compiled.FILES}
    return {
        "files": files,
        "manifest": {**seal["manifest"], "compiled": now["manifest"]["compiled"]},
    }


def _check(report: Report, expected: tuple[str, str], *, accept: bool, what: str) -> None:
    if (report.graph, report.decode) != expected:  # a note has said why
        raise ArtifactError(
            f"{what} cannot be loaded on the machine that made it: nothing was written"
        )
    failed = [
        f"{row.name} is {row.here:.4g}, limit {'a finite number' if row.limit is None else f'{row.limit:.4g}'}"
        for row in report.rows
        if not row.ok
    ]
    failed += [f"{check.name}: {check.what}" for check in report.checks if not check.ok]
    if failed and not accept:
        raise ParityError(
            f"{what} is outside the certificate's limits: {'; '.join(failed)}: write it with --accept"
        )
