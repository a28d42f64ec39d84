"""gptx merge: a LoRA adapter and its base -> a checkpoint with the adapter in its weights."""

from __future__ import annotations

import math
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gptx.artifact.class_head import Head, default_labels, read_head
from gptx.artifact.folders import check_apart, check_output, new_folder
from gptx.artifact.task import FILE as TASK_FILE
from gptx.artifact.task import read_task
from gptx.cli.output import write_out
from gptx.errors import CheckpointError, first_of
from gptx.progress import stage
from gptx_models.adapters.base import base_of
from gptx_models.adapters.peft_config import CONFIG
from gptx_models.adapters.peft_files import load_adapter
from gptx_models.checkpoints.checkpoint import SOURCE, save_checkpoint, weight_type_of
from gptx_models.checkpoints.read_files import read_json
from gptx_models.checkpoints.side_files import generation_of
from gptx_models.checkpoints.tensor_files import WeightType, open_folder
from gptx_models.checkpoints.tokenizer_files import (
    TokenizerFiles,
    check_vocabulary,
    read_tokenizer_folder,
)


def merge(
    adapter: Path, out: Path, *, base: Path | None = None, exact: bool = False, force: bool = False
) -> Path:
    """Write the merged checkpoint folder `out`, and return the base's folder.

    base: taken in place of the base that the adapter names. The merged weights are computed in fp32
    and stored in the base's type; if that is a 16-bit type, the adapter's update is rounded too.
    exact: store fp32 instead of the base's type. force: replace `out`. Raises CheckpointError,
    OutputError.
    """
    _check_is_adapter(adapter)
    base = base_of(adapter, base)
    for source in (adapter, base):
        check_apart(source, out)
    stored: WeightType = "F32" if exact else weight_type_of(base)
    needed = 4 * sum(math.prod(shape) for shape in open_folder(base).shapes.values())
    check_output(out, force=force, needed=needed)
    with stage("Merging the adapter"):
        gpt = load_adapter(adapter, base)
    tokenizer = _tokenizer(adapter, base, gpt.config.vocab_size)
    generation = generation_of(base, tokenizer, gpt.config.vocab_size, adapter=adapter)
    with new_folder(out, force=force, needed=needed) as folder:
        for name, text in tokenizer.files.items():
            (folder / name).write_text(text, "utf-8")
        if tokenizer.files:
            check_vocabulary(folder / "tokenizer.json", gpt.config.vocab_size, shown_as=adapter)
        if (adapter / TASK_FILE).exists():
            shutil.copyfile(adapter / TASK_FILE, folder / TASK_FILE)
        save_checkpoint(
            gpt,
            folder,
            tokenizer_files=None,
            source=_source(adapter, base),
            generation=generation,
            head=_head(adapter, base, gpt.config.n_class),
            weight_type=stored,
        )
    return base


def _check_is_adapter(folder: Path) -> None:
    if (folder / CONFIG).is_file():
        return
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist")
    inner = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))
    raise CheckpointError(
        f"{folder} is no adapter folder: it has no {CONFIG}"
        + (f", but holds adapters: {first_of(inner, 20)}: name one" if inner else "")
    )


def _tokenizer(adapter: Path, base: Path, vocab_size: int) -> TokenizerFiles:
    """The adapter's tokenizer if its folder has one, else the base's."""
    own = read_tokenizer_folder(adapter, vocab_size)
    return own if own.files else read_tokenizer_folder(base, vocab_size)


def _source(adapter: Path, base: Path) -> dict[str, Any]:
    """The content of gptx_source.json: where the adapter and the base come from."""
    about = {"adapter": _origin(adapter), "base": _origin(base)}
    licence = about["adapter"].get("licence") or about["base"].get("licence")
    source = {"format": "gptx-merge", "name": adapter.resolve().name, **about}
    return {**source, "licence": licence} if licence else source


def _origin(folder: Path) -> dict[str, Any]:
    """A folder's gptx_source.json; without that file, its name."""
    if (folder / SOURCE).exists():
        return read_json(folder / SOURCE)
    return {"name": folder.resolve().name}


def _head(adapter: Path, base: Path, n_class: int) -> Head | None:
    """The head of a merged classifier; None for a language model.

    The labels are taken from the adapter's gptx_task.json, or else from the base's config.json. If
    config.json does not have n_class labels, transformers' default labels are used. Raises
    CheckpointError.
    """
    if not n_class:
        return None
    try:
        head = read_head(read_json(base / "config.json"))
    except ValueError as error:
        raise CheckpointError(f"{base / 'config.json'}: {error}") from error
    task = read_task(adapter)
    if task and task.head:
        return replace(head, labels=task.labels)
    return head if len(head.labels) == n_class else replace(head, labels=default_labels(n_class))


@click.command("merge")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="The base checkpoint.  [default: the one ADAPTER names]",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def command(adapter: Path, out: Path, base: Path | None, force: bool) -> None:
    """Merge ADAPTER, a LoRA adapter of `gptx finetune` or PEFT, into its base.

    Writes the checkpoint folder OUT.

    The weights are stored in the base's type. (`gptx export ADAPTER` merges too, in fp32.)
    """
    base = merge(adapter, out, base=base, force=force)
    write_out(
        f"{out}: {adapter} merged into {base}, stored in {_TYPE_NAMES[weight_type_of(out)]}\n"
        f"next: gptx export {shlex.quote(str(out))} {shlex.quote(f'{out}-onnx')}\n"
    )


_TYPE_NAMES: dict[WeightType, str] = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
