"""OUT.run, the folder beside a checkpoint where its run keeps tokens, state and curve; and what the run is of.

What a run was begun with stands in run.json, which is written when all of it lies there: one that was begun with
something else is not gone on with.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gptx.errors import CheckpointError, UsageError
from gptx.folders import check_output, remove_leftovers
from gptx_models.checkpoint import write_json
from gptx_models.curve import METRICS, PICTURE
from gptx_models.state import STATE
from gptx_models.tensor_files import read_json

RUN = "run.json"
RECIPE = "recipe.toml"  # of the checkpoint
TRAIN, VAL = "train.bin", "val.bin"  # token ids
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def run_folder(out: Path) -> Path:
    out = Path(os.path.abspath(out))
    return out.with_name(out.name + ".run")


def open_run(out: Path, *, force: bool) -> Path:
    """The run's folder, made if need be; `force` clears what an earlier run left. Raises OutputError, CheckpointError."""
    run = run_folder(out)
    if not force and (run / STATE).exists() and not (run / RUN).exists():
        raise CheckpointError(f"{run} has a {STATE} and no {RUN}, so its texts are unknown: begin again with --force")
    check_output(out, force=force or (run / RUN).exists())  # the run's own output is replaced
    remove_leftovers(out)
    if force:
        for name in (STATE, RUN, METRICS, PICTURE, TRAIN, VAL, *TOKENIZER):
            (run / name).unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    return run


def is_begun(run: Path, origin: dict[str, Any]) -> bool:
    """Whether a run of this origin lies there. UsageError where it is one of another."""
    if not (run / RUN).exists():
        return False
    before = read_json(run / RUN)
    if different := [key for key in origin if origin[key] != before.get(key)]:
        raise UsageError(
            f"{run} is of a run with another {', '.join(different)}: choose another --out, or begin again with --force"
        )
    return True


def begin(run: Path, origin: dict[str, Any]) -> None:
    """To be called when all that the origin decides lies in the folder."""
    write_json(run / f"{RUN}.part", origin)
    os.replace(run / f"{RUN}.part", run / RUN)
