"""Add the parts of the reference that an artifact of an older gptx lacks; weights and figures stay.

    python benchmarks/recertify.py runtime/gptx/default_model

The model that ships with gptx was made before `gptx verify` covered the whole context, and its fp32
weights were not kept. So positions beyond the proof text, and the tokenizer's behaviour, are
recorded from the artifact itself. `gptx verify` then detects later changes, but not an error that
the artifact already has. gptx.json records this (certificate.context_against).
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np

import gptx
from gpt_export.certificate.certify import complete, record_artifact
from gpt_export.certificate.eval_text import load_eval_text
from gpt_export.certificate.prove import reference_budget
from gpt_export.quantization.quantize import source_card
from gpt_export.side_files import write_card, write_manifest
from gptx.artifact.folders import MANIFEST
from gptx.artifact.hashes import check_hashes
from gptx.artifact.manifest import read_manifest
from gptx.model import Model
from gptx.parity.reference import Reference
from gptx.parity.seal import seal_of, write_seal
from gptx.verify import measure
from gptx_models.checkpoints.checkpoint import write_json


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    manifest = read_manifest(folder)
    check_hashes(manifest)
    carried = Reference.load(folder, manifest.model)
    with gptx.load(folder, threads=1) as model:
        reference = completed(carried, model)
        certificate = {**manifest.certificate, "verified": measure(model, reference).to_dict()}
    if reference.context is not carried.context:
        certificate["context_against"] = (
            "the artifact as it was first shipped, as no fp32 weights of it are kept"
        )
    raw = write_manifest(
        folder,
        {key: value for key, value in manifest.raw.items() if key not in ("files", "certificate")},
    )
    proved = {**raw, "certificate": certificate}
    write_json(folder / MANIFEST, write_seal(folder, proved, reference, seal_of(proved)))
    write_card(folder, folder.name, source_card(folder))


def completed(reference: Reference, model: Model) -> Reference:
    """Add context and words; keep as many of the highest logits as fit the former file size."""
    facts = model.manifest
    text = load_eval_text(facts.path, vocab_size=facts.model.vocab_size, n_ctx=model.n_ctx)
    with tempfile.NamedTemporaryFile() as scratch:
        recording = record_artifact(model, text, Path(scratch.name))
    found = complete(reference, recording, facts.path, facts.raw["tokens"])
    budget = reference_budget(facts.model.n_parameters)
    while size_of(found) > budget and found.top_ids.shape[1] > 8:
        found = with_highest(found, found.top_ids.shape[1] - 1)
    return found


def with_highest(reference: Reference, count: int) -> Reference:
    kept = np.argsort(-reference.top_logits, axis=1)[:, :count]
    ids, logits = (
        np.take_along_axis(array, kept, 1) for array in (reference.top_ids, reference.top_logits)
    )
    return dataclasses.replace(reference, top_ids=ids, top_logits=logits)


def size_of(reference: Reference) -> int:
    with tempfile.TemporaryDirectory() as folder:
        reference.save(Path(folder))
        return sum(file.stat().st_size for file in Path(folder).iterdir())


if __name__ == "__main__":
    main()
