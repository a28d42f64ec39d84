"""Serve workloads with one engine in this process: `python -m servers.measure NAME`.

In: JSON on standard input, with a job and either `prepare` (a folder) or `workloads`, of which the
first is a warm-up. Out: JSON as the last line of standard output.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from gptx.doctor import installed
from servers.contender import named
from servers.server import Job, Sampling, Server, Workload


def main() -> None:
    try:
        result = answer(named(sys.argv[1]), json.load(sys.stdin))
    except ModuleNotFoundError as error:
        result = {"error": f"the package {error.name} is not installed"}
    except Exception as error:  # the parent turns it into a sentence
        traceback.print_exc()
        result = {"error": next(iter(str(error).strip().splitlines()), type(error).__name__)}
    print("\n" + json.dumps(result))


def answer(server: Server, request: dict[str, Any]) -> dict[str, Any]:
    """Prepare a model, or serve all workloads."""
    job = Job(**request["job"] | {"path": Path(request["job"]["path"])})
    if "prepare" in request:
        assert server.prepare is not None
        return {"path": str(server.prepare(job.path, job.variant, Path(request["prepare"])))}
    workloads = [
        Workload(**one | {"sampling": Sampling(*one["sampling"])}) for one in request["workloads"]
    ]
    model = server.load(job)
    served = [model.serve(one) for one in workloads][1:]
    return {
        "served": [one._asdict() for one in served],
        "weights": model.weights,
        "versions": {name: version for name in server.packages if (version := installed(name))},
    }


if __name__ == "__main__":
    main()
