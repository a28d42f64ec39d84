"""Are the native logits of this machine those of the machine that made the artifact, bit by bit?

Native operators promise the same bits on every processor (docs/explanation/native.md). gptx.json
holds a hash of the logits of each window of the proof text, made with operators of the manifest's
kernel_order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptx.artifact.manifest import Manifest
from gptx.parity.reference import Reference
from gptx.parity.report import Check


def stated_hashes(manifest: Manifest) -> list[str]:
    """The hashes of native logits in gptx.json; [] if it was made without native operators."""
    made: Any = manifest.certificate.get("logits_sha256")
    added: Any = (manifest.raw.get("upgraded") or {}).get("logits_sha256")
    return [str(one) for one in made or added or []]


def check_bits(
    stated: Sequence[str], found: Sequence[str], reference: Reference
) -> tuple[list[Check], list[str]]:
    """Compare the hashes of all windows of the proof text; returns checks and notes.

    Other bits are no failure: the figures are judged by their limits in any case.
    """
    if not stated or not found:
        return [], []
    windows = reference.windows.tolist()
    if len(stated) != len(windows):
        return [], [
            "gptx.json does not state a hash of the logits for each window of the proof text"
        ]
    tokens = f"{len(reference.tokens):,} tokens"
    for (first, _), expected, here in zip(windows, stated, found):
        if expected != here:
            return [], [
                f"native logits differ in bits from those of the machine that made the artifact,"
                f" from a token behind {first:,} of {tokens} on: judged by the limits"
            ]
    what = f"logits after {tokens} are identical to the bit to those stated in gptx.json"
    return [Check("native bits", what, True)], []
