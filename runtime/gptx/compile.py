"""Add a compiled graph, which opens faster on machines like this one, to a copy of an artifact.

ONNX Runtime optimizes the graph, and packs the weights as this processor's kernels read them, into
a file that several processes share. The portable graph stays as it is, for other machines and
loaders. ort/compiled.py decides which of the two is opened. The step graph is not compiled: native
operators pack its weights themselves.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gptx.artifact.folders import MANIFEST, check_apart, check_output, new_folder
from gptx.artifact.hashes import check_hashes, sha256
from gptx.artifact.manifest import FileFacts, Manifest, read_manifest
from gptx.errors import ArtifactError, ParityError, ProviderError, UsageError
from gptx.ort import compiled
from gptx.ort.library import first_line
from gptx.ort.native import onnx_runtime_only
from gptx.ort.sessions import save_optimized
from gptx.parity.reference import Reference
from gptx.parity.report import failures
from gptx.parity.seal import Seal, seal_of, write_seal
from gptx.progress import stage
from gptx.verify import Report, checked_certificate, verify

CARD = "README.md"  # beside gptx.json the only file of an artifact that gptx.json does not list


def compile_artifact(
    source: Path, out: Path, *, accept: bool = False, force: bool = False
) -> Report:
    """Copy the artifact `source` to `out`, compile its graphs, and verify the result.

    A compiled graph that `source` has already is not copied. accept: write `out` even if it is
    outside the certificate's limits; gptx.json then says so. force: replace `out` if it exists.

    Raises ArtifactError for a damaged artifact or a graph that cannot be compiled, ParityError if
    the compiled graph is outside the limits, OutputError if `out` cannot be written, UsageError if
    `out` exists or lies in `source`, or `source` has a step graph only, ProviderError if ONNX
    Runtime does not load.
    """
    manifest = read_manifest(source)
    if manifest.native_only:
        raise UsageError(
            f"{source} has no graph to compile: native operators pack its weights themselves"
        )
    checked_certificate(manifest)
    check_apart(source, out)
    portable = {name: facts for name, facts in manifest.files.items() if name not in compiled.FILES}
    needed = _bytes_needed(manifest, portable)
    check_output(out, force=force, needed=needed)
    check_hashes(manifest)
    reference = Reference.load(source, manifest.model)
    with new_folder(out, force=force, needed=needed) as staging:
        _copy(source, staging, portable)
        with stage("Compiling"):
            _compile(manifest, staging)
        raw = {
            **manifest.raw,
            "compiled": compiled.facts(),
            "files": _files(manifest, staging, portable),
        }
        _write_manifest(staging, raw, reference)
        # The step graph of native operators would run in place of the compiled graphs.
        with stage("Proving"), onnx_runtime_only():
            report = verify(staging)
        expected = (compiled.GRAPH, compiled.DECODE if manifest.decode else "")
        _check(report, expected, accept=accept, what=f"the compiled graph of {source}")
        if not report.passed:
            raw["compiled"]["accepted"] = True
            _write_manifest(staging, raw, reference)
    return report


def _bytes_needed(manifest: Manifest, portable: Mapping[str, FileFacts]) -> int:
    """Bytes on the disk for the copied files and, at most, the compiled ones."""
    # Each compiled graph holds its weights twice: as they are, and packed. Packed ones take up to
    # 1.2 times their size, because MatMulNBits adds sums of blocks. A CPU holds fp16 weights as
    # fp32, which doubles both.
    copies = 4.4 if manifest.decode or manifest.precision == "fp16" else 2.2
    sizes = [
        facts.size * (1 + copies if name.startswith("onnx/") else 1)
        for name, facts in portable.items()
    ]
    return int(sum(sizes))


def _copy(source: Path, staging: Path, portable: Iterable[str]) -> None:
    for name in [*portable, *([CARD] if (source / CARD).exists() else [])]:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, staging / name)


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
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise ArtifactError(
            f"{graph}: ONNX Runtime cannot compile it: {first_line(error)}"
        ) from error


def _files(manifest: Manifest, staging: Path, portable: Iterable[str]) -> dict[str, Any]:
    """The `files` of gptx.json. Hashes of the portable files were checked before the copy."""
    files = {name: manifest.raw["files"][name] for name in portable}
    for name in compiled.FILES:
        # A graph that has only small weights keeps them inside, and there is no file of weights.
        if (file := staging / name).exists():
            files[name] = {"sha256": sha256(file), "size": file.stat().st_size}
    return files


def _write_manifest(staging: Path, raw: dict[str, Any], reference: Reference) -> None:
    if reference.seal:
        raw = write_seal(staging, raw, reference, _with_compiled(reference.seal, seal_of(raw)))
    (staging / MANIFEST).write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _with_compiled(seal: Seal, now: Seal) -> Seal:
    """The seal of the artifact when it was made, with the compiled files and facts added."""
    files = {name: digest for name, digest in seal["files"].items() if name not in compiled.FILES}
    files |= {name: digest for name, digest in now["files"].items() if name in compiled.FILES}
    return {
        "files": files,
        "manifest": {**seal["manifest"], "compiled": now["manifest"]["compiled"]},
    }


def _check(report: Report, expected: tuple[str, str], *, accept: bool, what: str) -> None:
    if (report.graph, report.decode) != expected:  # a warning has told why
        raise ArtifactError(
            f"{what} cannot be loaded on the machine that made it: nothing was written"
        )
    failed = failures(report)
    if failed and not accept:
        raise ParityError(
            f"{what} is outside the certificate's limits: {'; '.join(failed)}: write it with"
            " --accept"
        )
