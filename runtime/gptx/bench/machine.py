"""Where a benchmark ran: what must stand beside its figures. Out: a dict for the JSON, and the lines that say it."""

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
    """`packages`: distributions whose versions count beside gptx's; `program`: the command's name, of a script none."""
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
    busy = facts["load_average"]
    return [
        facts["command"],
        f"{facts['date']}, {facts['cpu']}, {facts['cores']} cores, {' '.join(facts['cpu_features'])}",
        *([facts["gpu"]] if facts["gpu"] else []),
        f"Python {facts['python']}, "
        + ", ".join(f"{name} {found}" for name, found in facts["versions"].items()),
        *(
            [f"the machine was busy before: load average {busy} on {facts['cores']} cores"]
            if busy and busy > 0.5
            else []
        ),
    ]
