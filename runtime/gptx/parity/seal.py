"""The seal of an artifact: hashes of its files and of the values in gptx.json when it was made.

gptx_reference.safetensors holds the seal. The hashes in gptx.json find damage; the seal also finds
an edit after which somebody adapted those hashes. It is no signature: somebody who rewrites
gptx_reference.safetensors can write a new seal, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptx.artifact.folders import MANIFEST
from gptx.artifact.layout import REFERENCE

if TYPE_CHECKING:
    from gptx.parity.reference import Reference

# {"files": {file name: SHA-256}, "manifest": {key of gptx.json: hash of its value}}
Seal = dict[str, dict[str, str]]
DIGITS = 32  # hexadecimal digits that are kept of the SHA-256 of a value of gptx.json


def seal_of(raw: Mapping[str, Any]) -> Seal:
    """The seal of an artifact whose gptx.json is `raw`; the files' hashes are taken from `raw`."""
    return {"files": _files(raw), "manifest": _values(raw)}


def write_seal(
    folder: Path, raw: dict[str, Any], reference: Reference, seal: Seal
) -> dict[str, Any]:
    """Write gptx_reference.safetensors with `seal` into the artifact in `folder`.

    Returns `raw`, the object for gptx.json, with the hash and size of the written file. The caller
    writes gptx.json.
    """
    replace(reference, seal=seal).save(folder)
    written = (folder / REFERENCE).read_bytes()
    facts = {"sha256": hashlib.sha256(written).hexdigest(), "size": len(written)}
    return {**raw, "files": {**raw["files"], REFERENCE: facts}}


def changes(stored: Seal, raw: Mapping[str, Any]) -> list[str]:
    """Names of the files and values that differ from the seal `stored`, for a message.

    raw: the object in gptx.json; its hashes of files must have been checked.
    """
    return [
        *_differing(stored["files"], _files(raw)),
        *(f"{name!a:.60} in {MANIFEST}" for name in _differing(stored["manifest"], _values(raw))),
    ]


def _differing(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*was, *now} if was.get(name) != now.get(name))


def _files(raw: Mapping[str, Any]) -> dict[str, str]:
    return {name: facts["sha256"] for name, facts in raw["files"].items() if name != REFERENCE}


def _values(raw: Mapping[str, Any]) -> dict[str, str]:
    """The hash of every value of gptx.json except `files`, which the seal holds one by one."""
    texts = {
        name: json.dumps(value, sort_keys=True) for name, value in raw.items() if name != "files"
    }
    return {
        name: hashlib.sha256(text.encode()).hexdigest()[:DIGITS] for name, text in texts.items()
    }


def is_seal(value: Any) -> bool:
    """True if a JSON value has the form of a seal."""
    if not isinstance(value, dict):
        return False
    parts = [value.get(name) for name in ("files", "manifest")]
    return all(
        isinstance(part, dict) and all(isinstance(text, str) for text in part.values())
        for part in parts
    )
