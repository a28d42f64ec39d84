"""The certificate in gptx.json as gptx verify reads it: is it complete, and what does it claim?"""

from __future__ import annotations

import math
from typing import Any

from gptx.artifact.folders import MANIFEST
from gptx.artifact.manifest import Manifest
from gptx.errors import ArtifactError
from gptx.parity.limits import LIMITS
from gptx.parity.report import Check

PARTS = ("figures", "consistency", "limits", "greedy")


def checked_certificate(manifest: Manifest) -> dict[str, Any]:
    """The certificate, with every part and limit that gptx verify needs.

    Raises ArtifactError where there is none, a part is missing, or a limit is not a finite number
    of 0 or more.
    """
    certificate: Any = manifest.certificate
    where = manifest.path / MANIFEST
    if not certificate:
        raise ArtifactError(
            f"{manifest.path} carries no certificate: export or quantize it with gptx"
        )
    if not isinstance(certificate, dict) or not all(
        isinstance(certificate.get(part), dict) for part in PARTS
    ):
        raise ArtifactError(
            f"{where}: certificate lacks one of {', '.join(PARTS)}: export the artifact again"
        )
    needed = {name: certificate["limits"].get(name) for name in LIMITS[manifest.precision]}
    limits = {**certificate["limits"], **needed}
    if wrong := [name for name, value in limits.items() if not is_json_number(value)]:
        raise ArtifactError(
            f"{where}: certificate has no number as the limit of {', '.join(wrong)}:"
            " export the artifact again"
        )
    # No figure can be outside an infinite limit, and comparisons with NaN are always False.
    if endless := [f"{name} is {n}" for name, n in limits.items() if not 0 <= n < math.inf]:
        raise ArtifactError(
            f"{where}: certificate's limit {'; '.join(endless)}, expected a number of 0 or more"
        )
    return certificate


def is_json_number(value: Any) -> bool:
    """True for a number of JSON: an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def claims(manifest: Manifest, certificate: dict[str, Any]) -> tuple[list[Check], list[str]]:
    """What the certificate says about itself, as checks and notes.

    A failed check if the artifact did not pass when it was made. Notes on a failure that the maker
    accepted, and on limits that differ from gptx's own.
    """
    checks, notes = [], []
    outside = "; ".join(reason[:200] for reason in certificate.get("outside") or [])
    outside = outside or "it does not say where"
    if certificate.get("accepted"):
        notes.append(f"outside its limits when it was made, and accepted as it is: {outside}")
    elif certificate.get("passed") is not True:
        says = f"it says that the artifact was outside its limits when it was made: {outside}"
        checks.append(Check("certificate", says, False))
    if other := _other_limits(manifest.precision, certificate["limits"]):
        notes.append(
            f"judged by limits of the artifact's own, not by gptx's for {manifest.precision}:"
            f" {', '.join(other)}"
        )
    return checks, notes


def _other_limits(precision: str, limits: dict[str, float]) -> list[str]:
    table = LIMITS[precision]
    return [
        f"{name} {limit:g} instead of {table.get(name, 0):g}"
        for name, limit in limits.items()
        if limit != table.get(name)
    ]
