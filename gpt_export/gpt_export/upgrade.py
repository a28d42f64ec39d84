"""gptx upgrade: add the step graph to an artifact that was made without one, in place.

In: the folder of an artifact. Its layers are read from model.onnx, the step graph is written to a
folder inside it, and proved there as gptx verify does. Then four files are put into their places:
step.onnx, the reference (whose seal names the new file), the model card, and gptx.json as the last.
"""

from __future__ import annotations

import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gptx
from gpt_export.graph.step_graph import CacheType, NoStepGraph
from gpt_export.graph.stored_layers import stored_layers
from gpt_export.graph.write_step_graph import (
    STEP_FACTS,
    step_facts,
    with_cache_type,
    write_step_graph,
)
from gpt_export.quantization.quantize import gpt_config
from gpt_export.side_files import CARD, card_with_size, write_json
from gptx.artifact.folders import MANIFEST
from gptx.artifact.hashes import check_hashes, sha256
from gptx.artifact.layout import REFERENCE, STEP
from gptx.artifact.manifest import Manifest, read_manifest
from gptx.artifact.native_form import why_no_step_graph
from gptx.errors import ArtifactError, OutputError, ParityError, UsageError
from gptx.ort import native
from gptx.parity.certificate import checked_certificate
from gptx.parity.reference import Reference
from gptx.parity.report import Report, failures
from gptx.parity.seal import Seal, seal_of, write_seal
from gptx.progress import stage
from gptx.system.cpu import cpu_name
from gptx.verify import verify
from gptx_models.gpt.config import GPTConfig

FACTS = (*STEP_FACTS, "upgraded")  # the fields of gptx.json that an upgrade adds
REPLACED = (STEP, REFERENCE, CARD)  # before gptx.json


def upgrade_artifact(
    path: Path, *, cache_type: CacheType | None = None, accept: bool = False
) -> Report:
    """Add the step graph to the artifact in the folder `path`; returns the proof of it.

    cache_type: the type of its cache, by default fp16 if weights are rounded, else fp32. accept:
    add it even if it is outside the limits of the artifact's certificate; gptx.json then says so.

    Raises UsageError for an artifact that has a step graph or can have none, and on a machine
    without native operators; ArtifactError for a damaged artifact; ParityError if the step graph is
    outside the limits; OutputError if the folder cannot be written. In each of these cases the
    folder stays as it was.
    """
    manifest = read_manifest(path)
    config = expect_upgradable(manifest)
    before = (path / MANIFEST).read_bytes()
    checked_certificate(manifest)
    check_hashes(manifest)
    reference = Reference.load(path, manifest.model)
    with _staging(path) as staging:
        _link(manifest, staging)
        with stage("Writing the step graph"):
            _write_step_graph(manifest, config, staging, cache_type)
        raw = _with_step_graph(manifest, staging)
        _write_manifest(staging, raw, reference)
        with stage("Proving"):
            report = verify(staging)
        what = with_cache_type(f"the step graph of {path}", cache_type)
        _check(report, accept=accept, what=what)
        raw["upgraded"] = _proof(report)
        _write_manifest(staging, raw, reference)
        _write_card(manifest, raw, staging)
        _move_in(staging, path, before)
    return report


def expect_upgradable(manifest: Manifest) -> GPTConfig:
    """The configuration of an artifact that a step graph can be added to, on this machine.

    Raises UsageError, which says why none can be added, or ArtifactError for a damaged gpt_config.
    """
    path = manifest.path
    if manifest.step is not None:
        raise UsageError(f"{path} has a step graph already")
    if reason := why_no_step_graph(manifest):
        raise UsageError(f"{path} can have no step graph, since {reason}")
    if any((path / name).is_symlink() for name in manifest.files):
        # ONNX Runtime opens a graph only if its weights lie beside it, links followed.
        raise UsageError(
            f"{path} consists of links, as in the hub's cache: upgrade a copy of the files,"
            " which cp -rL makes"
        )
    config = gpt_config(manifest)
    assert config is not None
    if not native.available():
        missing = native.why_no_library() or "GPTX_KERNELS is none"
        raise UsageError(
            f"{path} cannot be upgraded here, since a step graph is proved with native kernels:"
            f" {missing}"
        )
    return config


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A new folder inside the artifact, removed at the end. Raises OutputError.

    It lies on the artifact's own disk, and no loader looks into it.
    """
    folder = path / f".upgrade.{uuid.uuid4().hex[:8]}.part"
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link(manifest: Manifest, staging: Path) -> None:
    """Put the artifact's files into `staging`: hard links where the disk has them, else copies."""
    for name in manifest.files:
        new, old = staging / name, manifest.path / name
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old, new)
        except OSError:
            shutil.copyfile(old, new)


def _write_step_graph(
    manifest: Manifest, config: GPTConfig, staging: Path, cache_type: CacheType | None
) -> None:
    """Write the step graph to `staging`. Raises UsageError for layers that it cannot have."""
    try:
        write_step_graph(stored_layers(manifest.graph, config), staging, cache_type)
    except NoStepGraph as reason:
        raise UsageError(f"{manifest.path} can have no step graph, since {reason}") from None


def _with_step_graph(manifest: Manifest, staging: Path) -> dict[str, Any]:
    """gptx.json with the step graph in `staging`."""
    file = staging / STEP
    entry = {"sha256": sha256(file), "size": file.stat().st_size}
    files = dict(sorted({**manifest.raw["files"], STEP: entry}.items()))
    return {**manifest.raw, **step_facts(staging), "files": files}


def _write_manifest(staging: Path, raw: dict[str, Any], reference: Reference) -> None:
    """Write gptx.json; also the reference, if it has a seal."""
    if reference.seal:
        # Saving writes a file anew: the hard link of the artifact's own must go first.
        (staging / REFERENCE).unlink()
        raw = write_seal(staging, raw, reference, _with_facts(reference.seal, seal_of(raw)))
    write_json(staging / MANIFEST, raw)


def _with_facts(seal: Seal, now: Seal) -> Seal:
    """The seal of the artifact when it was made, with the step graph and its facts added."""
    facts = {name: now["manifest"][name] for name in FACTS if name in now["manifest"]}
    return {
        "files": {**seal["files"], STEP: now["files"][STEP]},
        "manifest": {**seal["manifest"], **facts},
    }


def _check(report: Report, *, accept: bool, what: str) -> None:
    if report.graph != STEP:
        raise ArtifactError(f"{what} cannot be opened here: nothing was written")
    problems = failures(report)
    if problems and not accept:
        raise ParityError(
            f"{what} is outside the certificate's limits: {'; '.join(problems)}:"
            " nothing was written, --accept writes it anyway"
        )


def _proof(report: Report) -> dict[str, Any]:
    """`upgraded` of gptx.json: where the step graph was proved, and its figures."""
    return {
        "gptx_version": gptx.__version__,
        "kernels": report.kernels,
        "cpu": cpu_name(),
        "figures": {row.name: row.here for row in report.rows if math.isfinite(row.here)},
        "logits_sha256": report.logits_sha256,
        **({} if report.passed else {"accepted": True}),
    }


def _write_card(manifest: Manifest, raw: dict[str, Any], staging: Path) -> None:
    """The model card with the new size, if the artifact has a card."""
    card = manifest.path / CARD
    if card.is_file():
        text = card.read_bytes().decode("utf-8", "surrogateescape")
        text = card_with_size(text, manifest.raw, raw)
        (staging / CARD).write_bytes(text.encode("utf-8", "surrogateescape"))


def _move_in(staging: Path, path: Path, before: bytes) -> None:
    """Move the new files to their places in `path`, gptx.json last; after a failure, move all back.

    before: gptx.json as it was when the upgrade began.
    """
    if (path / MANIFEST).read_bytes() != before:
        raise ArtifactError(f"{path} was changed while it was upgraded: nothing was written")
    old = staging / "before"
    old.mkdir()
    try:
        for name in REPLACED:
            if not _is_new(staging / name, path / name):
                continue
            if os.path.lexists(path / name):
                os.rename(path / name, old / Path(name).name)
            os.rename(staging / name, path / name)
        os.replace(staging / MANIFEST, path / MANIFEST)
    finally:
        if (path / MANIFEST).read_bytes() == before:
            for name in REPLACED:
                if os.path.lexists(old / Path(name).name):
                    os.replace(old / Path(name).name, path / name)
            (path / STEP).unlink(missing_ok=True)


def _is_new(file: Path, place: Path) -> bool:
    """True for a file that is not the one at `place` itself, by a hard link."""
    return file.exists() and not (place.exists() and file.samefile(place))
