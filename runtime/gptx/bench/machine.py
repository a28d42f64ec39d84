"""The conditions of a benchmark: command, date, machine, versions. As JSON, and in lines."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from typing import Any

from gptx.bench.device import gpu_name
from gptx.doctor import installed
from gptx.install import version
from gptx.system.cpu import cpu_cores, cpu_features, cpu_name


def machine(*packages: str, program: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Describe this machine for the JSON of a benchmark.

    packages: distributions to report versions of, beside gptx's. program: name of the command that
    runs; None for a script. device: "cuda" adds the GPU.
    """
    return {
        "command": shlex.join([program, *sys.argv[1:]] if program else ["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cpu_features": cpu_features(),
        "cores": cpu_cores(),
        "gpu": gpu_name() if device == "cuda" else None,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"gptx": version()} | {name: installed(name) for name in packages},
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts of `machine` as lines for people, with a warning if the machine was busy."""
    cores, load = facts["cores"], facts["load_average"]
    versions = ", ".join(f"{name} {found}" for name, found in facts["versions"].items())
    found = [
        facts["command"],
        f"{facts['date']}, {facts['cpu']}, {cores} cores, {' '.join(facts['cpu_features'])}",
        facts["gpu"],
        f"Python {facts['python']}, {versions}",
    ]
    if load and load > 0.5:
        found.append(f"the machine was busy before: load average {load} on {cores} cores")
    return [line for line in found if line]
