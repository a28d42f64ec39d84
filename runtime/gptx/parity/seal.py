"""The seal of an artifact: the hashes of its files and of gptx.json's values when it was made, kept in its reference.

Sizes and hashes in gptx.json find damage, but not an edit that made them agree again: that one differs from the seal.
The seal is no signature. Who writes gptx_reference.safetensors as well can seal anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptx.artifact.folders import MANIFEST
from gptx.artifact.manifest import REFERENCE

if TYPE_CHECKING:
    from gptx.parity.reference import Reference

Seal = dict[
    str, dict[str, str]
]  # "files" and "manifest": a hash by name, of each file and of each value of gptx.json
DIGITS = 32  # of each value's hash in hexadecimal


def seal_of(raw: Mapping[str, Any]) -> Seal:
    """The seal of an artifact whose gptx.json holds `raw`, with the hashes of the files that are there."""
    return {"files": _files(raw), "manifest": _values(raw)}


def write_seal(
    folder: Path, raw: dict[str, Any], reference: Reference, seal: Seal
) -> dict[str, Any]:
    """Write `reference` with `seal` into the artifact in `folder`. Returns `raw`, what gptx.json is to hold, with the hash
    and size of the file that was written."""
    replace(reference, seal=seal).save(folder)
    written = (folder / REFERENCE).read_bytes()
    facts = {"sha256": hashlib.sha256(written).hexdigest(), "size": len(written)}
    return {**raw, "files": {**raw["files"], REFERENCE: facts}}


def changes(stored: Seal, raw: Mapping[str, Any]) -> list[str]:
    """What is not as it was sealed, in words. `raw`: what gptx.json holds, with the hashes of the files that are here."""
    return [
        *_differing(stored["files"], _files(raw)),
        *(f"{name!a:.60} in {MANIFEST}" for name in _differing(stored["manifest"], _values(raw))),
    ]


def _differing(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*was, *now} if was.get(name) != now.get(name))


def _files(raw: Mapping[str, Any]) -> dict[str, str]:
    return {name: facts["sha256"] for name, facts in raw["files"].items() if name != REFERENCE}


def _values(raw: Mapping[str, Any]) -> dict[str, str]:
    """The hash of every value of gptx.json, but for the files', which are sealed by themselves."""
    texts = {
        name: json.dumps(value, sort_keys=True) for name, value in raw.items() if name != "files"
    }
    return {
        name: hashlib.sha256(text.encode()).hexdigest()[:DIGITS] for name, text in texts.items()
    }


def is_seal(value: Any) -> bool:
    """Whether a value read from JSON has the form of a seal."""
    parts = (
        [value.get(name) for name in ("files", "manifest")] if isinstance(value, dict) else [None]
    )
    return all(
        isinstance(part, dict) and all(isinstance(text, str) for text in part.values())
        for part in parts
    )
