"""OUT.run, the folder beside a checkpoint where its run keeps tokens, state and curve; and what the run is of.

What a run was begun with stands in run.json, which is written when all of it lies there: one that was begun with
something else is not gone on with.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gptx.artifact.folders import check_output, remove_leftovers
from gptx.errors import CheckpointError, OutputError, UsageError
from gptx.progress import note
from gptx_models.checkpoints.checkpoint import SOURCE, write_json
from gptx_models.checkpoints.read_files import read_json
from gptx_models.training.metrics_log import METRICS, PICTURE
from gptx_models.training.run_state import STATE

RUN = "run.json"
RECIPE = "recipe.toml"  # of the checkpoint
TRAIN, VAL = "train.bin", "val.bin"  # token ids
SETTINGS = "recipe"  # in run.json
MAY_CHANGE = (
    "steps",
    "minutes",
    "epochs",
    "eval_every",
    "patience",
    "sample",
    "accumulate",
    "compile",
    "generation",
)
GENERATION = "generation_config.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    GENERATION,
)


def run_folder(out: Path) -> Path:
    out = Path(os.path.abspath(out))
    return out.with_name(out.name + ".run")


def open_run(out: Path, *, force: bool) -> Path:
    """The run's folder, made if need be; `force` clears what an earlier run left. Raises OutputError, CheckpointError."""
    run = run_folder(out)
    if not force and (run / STATE).exists() and not (run / RUN).exists():
        raise CheckpointError(
            f"{run} has a {STATE} and no {RUN}, so its texts are unknown: begin again with --force"
        )
    check_output(out, force=force or (run / RUN).exists())  # the run's own output is replaced
    remove_leftovers(out)
    if force:
        _clear(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {run}: {error.strerror}") from error
    return run


@contextmanager
def beginning(run: Path) -> Iterator[None]:
    """Remove what was written of a run that could not begin, and its folder if nothing else lies there."""
    try:
        yield
    except BaseException:
        _clear(run)
        with suppress(OSError):
            run.rmdir()
        raise


def _clear(run: Path) -> None:
    for name in (STATE, RUN, METRICS, PICTURE, TRAIN, VAL, *TOKENIZER):
        (run / name).unlink(missing_ok=True)


def is_begun(run: Path, origin: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a run of this origin, begun with these settings, lies there. Settings that decide only how long a run is
    and what is seen of it may be others than before, which is said. UsageError where anything else is different."""
    if not (run / RUN).exists():
        return False
    before, origin = read_json(run / RUN), _as_json(origin)
    other = [
        key.replace("_", " ") for key in origin if key in before and origin[key] != before[key]
    ]
    wrong = [f"{'other' if name.endswith('s') else 'another'} {name}" for name in other]
    old, new = before.get(SETTINGS) or {}, _as_json(settings)
    changed = [name for name in new if name in old and new[name] != old[name]]
    if not (run / STATE).exists():  # nothing was trained yet
        changed = []
    wrong += [
        f"{name} {_shown(old[name])} instead of {_shown(new[name])}"
        for name in changed
        if name not in MAY_CHANGE
    ]
    if wrong:
        raise UsageError(
            f"{run} is of a run with {', '.join(wrong)}: choose another --out, or begin again with --force"
        )
    for name in changed:
        note(f"going on with {name} {_shown(new[name])} instead of {_shown(old[name])}")
    if old != new:
        begin(run, origin, settings)
    return True


def begin(run: Path, origin: dict[str, Any], settings: dict[str, Any]) -> None:
    """To be called when all that the origin decides lies in the folder."""
    _replace_json(run / RUN, {**_as_json(origin), SETTINGS: _as_json(settings)})


def _replace_json(file: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    write_json(part, value)
    os.replace(part, file)


def settle(out: Path, *, generation: dict[str, Any], licence: str | None) -> None:
    """Write into a run's output what may be other than when its weights were saved: a run that ended, or found nothing
    better since, saves no weights any more."""
    if generation != read_json(out / GENERATION):
        _replace_json(out / GENERATION, generation)
    source = read_json(out / SOURCE)
    if licence and licence != source.get("licence"):
        _replace_json(out / SOURCE, {**source, "licence": licence})


def size_of(run: Path) -> int:
    """Bytes of the files in a run's folder."""
    return sum(file.stat().st_size for file in run.rglob("*") if file.is_file())


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """As run.json gives them back: tuples are lists there. JSON has no infinity, which means no limit: null."""
    return json.loads(
        json.dumps({name: None if value == math.inf else value for name, value in values.items()})
    )


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
