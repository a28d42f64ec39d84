"""An engine to compare, NAME[:PATH[:VARIANT]] of the command line, and asking it for its work."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptx.bench.children import run
from gptx.errors import GptxError, UsageError
from servers.server import Job, Server, Workload


def names() -> list[str]:
    """Names of all engines, sorted."""
    return sorted(file.stem for file in (Path(__file__).parent / "engines").glob("*.py"))


def named(name: str) -> Server:
    """The engine of that name, one of `names()`."""
    return importlib.import_module(f"servers.engines.{name}").SERVER


@dataclass(frozen=True)
class Contender:
    """An engine with the model that it loads. label: of the path, only the last part."""

    label: str
    name: str
    path: Path
    variant: str | None

    @property
    def server(self) -> Server:
        return named(self.name)


def contender(text: str, artifact: Path) -> Contender:
    """Read NAME[:PATH[:VARIANT]]. Raises UsageError for a wrong name or path.

    artifact: the path of engines that take an artifact, if none is given.
    """
    name, _, rest = text.partition(":")
    path, _, variant = rest.partition(":")
    if name not in names():
        raise UsageError(f"{text} is no engine: expected NAME[:PATH[:VARIANT]], {names()}")
    if not path and not named(name).takes_artifact:
        raise UsageError(f"{text} needs a path: {name}:PATH")
    place = Path(path) if path else artifact
    if not place.exists():
        raise UsageError(f"{text}: {place} does not exist")
    label = ":".join(filter(None, (name, place.absolute().name, variant)))
    return Contender(label, name, place, variant or None)


@dataclass(frozen=True)
class Process:
    """The processes in which engines run. The fields are those of Job."""

    threads: int
    rows: int
    context: int
    ends: list[int]

    def prepared(self, one: Contender, folder: Path) -> Contender:
        """The engine with a model that it can read, converted into `folder` if need be."""
        if one.server.prepare is None:
            return one
        return replace(one, path=Path(self._ask(one, prepare=str(folder))["path"]))

    def serve(self, one: Contender, workloads: Sequence[Workload]) -> dict[str, Any]:
        """Serve workloads in a new process, the first as a warm-up; see servers.measure."""
        return self._ask(one, workloads=[workload._asdict() for workload in workloads])

    def _ask(self, one: Contender, **asked: Any) -> dict[str, Any]:
        path = str(one.path.absolute())
        job = Job(Path(), one.variant, **self.__dict__)._asdict() | {"path": path}
        request = json.dumps({"job": job, **asked})
        done = run(["servers.measure", one.name], request, threads=self.threads)
        if done.returncode:
            words = done.stderr.strip().splitlines()[-1:]
            raise GptxError(f"{one.label} ended with status {done.returncode}: {''.join(words)}")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if "error" in answer:
            raise GptxError(f"{one.label}: {answer['error']}")
        return answer
