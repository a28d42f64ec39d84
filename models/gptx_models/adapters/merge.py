"""gptx merge: a LoRA adapter and its base in, a checkpoint with the adapter in its weights out."""

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
from gptx_models.adapters.peft_files import CONFIG, base_of, load_adapter
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
    """Write the checkpoint folder `out`, and return the base's. base: instead of the one that the adapter names.

    The sum is made in fp32 and stored as the base is, which of a base in 16 bits rounds the adapter too; exact: in fp32
    whatever the base is. Raises CheckpointError, OutputError.
    """
    if not (adapter / CONFIG).is_file():
        what = "is no adapter folder: it has no " + CONFIG if adapter.exists() else "does not exist"
        inner = sorted(file.parent.name for file in adapter.glob(f"*/{CONFIG}"))
        raise CheckpointError(
            f"{adapter} {what}"
            + (f", but holds adapters: {first_of(inner, 20)}: name one" if inner else "")
        )
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


def _tokenizer(adapter: Path, base: Path, vocab_size: int) -> TokenizerFiles:
    own = read_tokenizer_folder(adapter, vocab_size)
    return own if own.files else read_tokenizer_folder(base, vocab_size)


def _source(adapter: Path, base: Path) -> dict[str, Any]:
    about = {
        name: read_json(folder / SOURCE)
        if (folder / SOURCE).exists()
        else {"name": folder.resolve().name}
        for name, folder in (("adapter", adapter), ("base", base))
    }
    licence = about["adapter"].get("licence") or about["base"].get("licence")
    source = {"format": "gptx-merge", "name": adapter.resolve().name, **about}
    return {**source, "licence": licence} if licence else source


def _head(adapter: Path, base: Path, n_class: int) -> Head | None:
    """As the task names its classes; else as transformers describes the head that PEFT laid over the base: by the base's
    config.json, and where that has another number of labels, by its own names for them."""
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
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
def command(adapter: Path, out: Path, base: Path | None, force: bool) -> None:
    """Merge ADAPTER, a LoRA adapter of `gptx finetune` or PEFT, into its base and write the checkpoint folder OUT.

    The weights are stored in the base's type. (`gptx export ADAPTER` merges too, in fp32.)
    """
    base = merge(adapter, out, base=base, force=force)
    write_out(
        f"{out}: {adapter} merged into {base}, stored in {_TYPES[weight_type_of(out)]}\n"
        f"next: gptx export {shlex.quote(str(out))} {shlex.quote(f'{out}-onnx')}\n"
    )


_TYPES: dict[WeightType, str] = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
