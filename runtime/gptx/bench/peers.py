"""The engines to compare: NAME[:PATH[:VARIANT]] of the command line in, Contenders out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gptx.artifact.manifest import read_manifest
from gptx.bench import engines
from gptx.bench.engine import Engine
from gptx.doctor import installed
from gptx.errors import UsageError


@dataclass(frozen=True)
class Contender:
    """An engine with the model that it loads."""

    # NAME:PATH[:VARIANT]; of PATH only the last part, unless two engines then look alike
    label: str
    engine: str  # NAME
    path: Path
    variant: str | None = None

    @property
    def does(self) -> Engine:
        """The Engine called `engine`."""
        return engines.named(self.engine)


def contenders(measured: Path, against: Sequence[str]) -> list[Contender]:
    """All engines: gptx with the artifact `measured` comes first, then the peers `against`.

    Raises UsageError for a peer that cannot be measured or is named twice, ArtifactError for a
    folder that is no artifact.
    """
    found = [Contender("", "gptx", measured), *(contender(text, measured) for text in against)]
    places = [(one.engine, one.path.resolve(), one.variant) for one in found]
    twice = next((one for one, place in zip(found, places) if places.count(place) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{_label(twice, str(twice.path))} would be measured twice: name each engine once"
        )
    short = [_label(one, one.path.absolute().name) for one in found]
    return [
        replace(one, label=label if short.count(label) == 1 else _label(one, str(one.path)))
        for one, label in zip(found, short)
    ]


def contender(text: str, measured: Path) -> Contender:
    """Read one peer of the command line.

    measured: the artifact that engines with `takes_artifact` load if the peer names no path.
    """
    name, _, rest = text.partition(":")
    path, _, variant = (
        (rest, "", "") if Path(rest).exists() or ":" not in rest else rest.rpartition(":")
    )
    if name not in engines.names():
        raise UsageError(
            f"{text!r} is no peer: expected NAME[:PATH[:VARIANT]] with one of"
            f" {', '.join(engines.names())}"
        )
    engine = engines.named(name)
    if not path and not engine.takes_artifact:
        raise UsageError(f"{name} needs a path of its own: --against {name}:PATH")
    found = Contender("", name, Path(path) if path else measured, variant or None)
    check(text, found)
    return found


def check(text: str, one: Contender) -> None:
    """Raise UsageError or ArtifactError if something that the peer needs is missing."""
    if not one.path.exists():
        raise UsageError(f"{text}: {one.path} does not exist")
    if one.engine == "gptx":
        read_manifest(one.path)
    elif installed(one.does.packages[0]) is None:
        raise UsageError(f"{text}: {one.does.packages[0]} is not installed: {one.does.install}")
    if one.variant and not one.does.takes_variant:
        raise UsageError(
            f"{text}: {one.engine} takes a path and nothing behind it, not {one.variant!r}"
        )
    if one.engine == "genai" and not (one.path / "genai_config.json").exists():
        raise UsageError(
            f"{text}: {one.path} has no genai_config.json, so onnxruntime-genai cannot load it"
        )


def _label(one: Contender, path: str) -> str:
    return ":".join(filter(None, (one.engine, path, one.variant)))
