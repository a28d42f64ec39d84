"""OUT.run: the folder beside a checkpoint in which its run keeps tokens, state and metrics.

run.json holds the settings of the run and its origin (hashes of the texts, the tokenizer and so
on). It is written last, after the files that are made from the origin. Once the folder holds a
state, the run is resumed only with the same origin and the same settings; only the settings in
MAY_CHANGE may differ.
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
RECIPE = "recipe.toml"  # in the checkpoint folder
TRAIN, VAL = "train.bin", "val.bin"  # token ids
SETTINGS = "recipe"  # the key of the settings in run.json
# Settings that a resumed run may change: how long it is, how it is computed and what it reports. A
# new length also moves the end of the learning-rate schedule.
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
    """The folder of the run that writes `out`."""
    out = Path(os.path.abspath(out))
    return out.with_name(out.name + ".run")


def open_run(out: Path, *, force: bool) -> Path:
    """The run's folder, made if it does not exist. force: clear what an earlier run left in it.

    Raises OutputError if `out` exists and no run wrote it, or if the folder cannot be made, and
    CheckpointError if the folder holds a state but no run.json.
    """
    run = run_folder(out)
    if not force and (run / STATE).exists() and not (run / RUN).exists():
        raise CheckpointError(
            f"{run} has a {STATE} and no {RUN}, so its texts are unknown: begin again with --force"
        )
    check_output(out, force=force or (run / RUN).exists())  # a run may replace its own output
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
    """Remove the run's files if the body raises an error, so that no half-begun run stays."""
    try:
        yield
    except BaseException:
        _clear(run)
        with suppress(OSError):  # other files lie in the folder
            run.rmdir()
        raise


def _clear(run: Path) -> None:
    for name in (STATE, RUN, METRICS, PICTURE, TRAIN, VAL, *TOKENIZER):
        (run / name).unlink(missing_ok=True)


def begin(run: Path, origin: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write run.json. The files that are made from the origin must be in the folder already."""
    _replace_json(run / RUN, {**_as_json(origin), SETTINGS: _as_json(settings)})


def is_begun(run: Path, origin: dict[str, Any], settings: dict[str, Any]) -> bool:
    """True if the folder holds a run of this origin that can go on with these settings.

    Changes to settings in MAY_CHANGE are written to run.json, with a note to the user. Raises
    UsageError if the origin or another setting differs from that in run.json.
    """
    if not (run / RUN).exists():
        return False
    before, origin = read_json(run / RUN), _as_json(origin)
    old, new = before.get(SETTINGS) or {}, _as_json(settings)
    has_trained = (run / STATE).exists()
    changed = [name for name in new if name in old and new[name] != old[name] and has_trained]
    wrong = _other_origin(before, origin) + [
        f"{name} {_shown(old[name])} instead of {_shown(new[name])}"
        for name in changed
        if name not in MAY_CHANGE
    ]
    if wrong:
        raise UsageError(
            f"{run} is of a run with {', '.join(wrong)}: choose another --out, or begin again with"
            " --force"
        )
    for name in changed:
        note(f"going on with {name} {_shown(new[name])} instead of {_shown(old[name])}")
    if old != new:
        begin(run, origin, settings)
    return True


def _other_origin(before: dict[str, Any], origin: dict[str, Any]) -> list[str]:
    """ "other texts", "another tokenizer" and so on, for what differs."""
    names = [
        key.replace("_", " ") for key in origin if key in before and origin[key] != before[key]
    ]
    return [f"{'other' if name.endswith('s') else 'another'} {name}" for name in names]


def finish_output(out: Path, *, generation: dict[str, Any], licence: str | None) -> None:
    """Write the generation settings and the licence of the current command into the output.

    A resumed run may have changed them since it saved its best weights.
    """
    if generation != read_json(out / GENERATION):
        _replace_json(out / GENERATION, generation)
    source = read_json(out / SOURCE)
    if licence and licence != source.get("licence"):
        _replace_json(out / SOURCE, {**source, "licence": licence})


def size_of(run: Path) -> int:
    """Bytes of the files in a run's folder."""
    return sum(file.stat().st_size for file in run.rglob("*") if file.is_file())


def _replace_json(file: Path, value: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    write_json(part, value)
    os.replace(part, file)


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """The values after a round trip through JSON: tuples become lists, infinity becomes None."""
    return json.loads(
        json.dumps({name: None if value == math.inf else value for name, value in values.items()})
    )


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
