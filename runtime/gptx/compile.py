"""Compile a copy of an artifact, so that it opens faster.

Where native operators run the artifact, they write the weights of its step graph, packed as they
read them, to a file. It serves every processor. Elsewhere, ONNX Runtime optimizes the graph and
packs its weights, for machines like this one. The artifact's own files stay as they are, for other
machines and loaders. ort/compiled.py decides what is used.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gptx.artifact.folders import MANIFEST, check_apart, check_output, new_folder
from gptx.artifact.hashes import check_hashes, sha256
from gptx.artifact.layout import STEP
from gptx.artifact.manifest import FileFacts, Manifest, read_manifest
from gptx.errors import ArtifactError, ParityError, ProviderError
from gptx.ort import compiled
from gptx.ort.library import first_line
from gptx.ort.open_sessions import pack_step_graph, usable_step
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
    """Copy the artifact `source` to `out`, compile it, and verify the result.

    What `source` has compiled already is not copied. accept: write `out` even if it is outside the
    certificate's limits; gptx.json then says so. force: replace `out` if it exists.

    Raises ArtifactError for a damaged artifact or a graph that cannot be compiled, ParityError if
    the result is outside the limits, OutputError if `out` cannot be written, UsageError if `out`
    exists or lies in `source`, or GPTX_KERNELS names no kernels of this processor, ProviderError if
    ONNX Runtime does not load, or if `source` needs native operators that are not here.
    """
    manifest = read_manifest(source)
    step = usable_step(manifest)
    checked_certificate(manifest)
    check_apart(source, out)
    portable = {name: facts for name, facts in manifest.files.items() if name not in compiled.FILES}
    needed = _bytes_needed(manifest, portable, step=step is not None)
    check_output(out, force=force, needed=needed)
    check_hashes(manifest)
    reference = Reference.load(source, manifest.model)
    with new_folder(out, force=force, needed=needed) as staging:
        _copy(source, staging, portable)
        with stage("Compiling"):
            facts = _pack(manifest, step, staging) if step else _compile(manifest, staging)
        raw = {
            **manifest.raw,
            "compiled": facts,
            "files": _files(manifest, staging, portable),
        }
        _write_manifest(staging, raw, reference)
        with stage("Proving"):
            report = verify(staging)
        if step:
            expected, what = (STEP, ""), f"the step graph of {source} with packed weights"
        else:
            expected = (compiled.GRAPH, compiled.DECODE if manifest.decode else "")
            what = f"the compiled graph of {source}"
        _check(report, expected, accept=accept, what=what)
        if not report.passed:
            raw["compiled"]["accepted"] = True
            _write_manifest(staging, raw, reference)
    return report


def _bytes_needed(manifest: Manifest, portable: Mapping[str, FileFacts], *, step: bool) -> int:
    """Bytes on the disk for the copied files and, at most, the compiled ones."""
    if step:  # 4-bit weights with offsets grow most: an offset of 32 bits per 32 weights
        copied = sum(facts.size for facts in portable.values())
        onnx = sum(facts.size for name, facts in portable.items() if name.startswith("onnx/"))
        return int(copied + 1.3 * onnx)
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


def _pack(manifest: Manifest, step: Path, staging: Path) -> dict[str, Any]:
    """Write the packed weights of the step graph; returns the field `compiled` of gptx.json."""
    file = staging / compiled.PACKED
    file.parent.mkdir()
    pack_step_graph(step, file)
    return compiled.packed_facts(manifest)


def _compile(manifest: Manifest, staging: Path) -> dict[str, Any]:
    """Write the compiled graphs; returns the field `compiled` of gptx.json."""
    (staging / compiled.GRAPH).parent.mkdir()
    _compile_graph(manifest.graph, staging / compiled.GRAPH, compiled.WEIGHTS)
    if manifest.decode:
        _compile_graph(manifest.decode, staging / compiled.DECODE, compiled.DECODE_WEIGHTS)
    return compiled.facts()


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
