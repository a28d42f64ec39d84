"""gptx merge: a LoRA adapter and its base in, a checkpoint with the adapter in its weights out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from gptx.errors import CheckpointError
from gptx.folders import check_apart, check_output, new_folder
from gptx.task import FILE as TASK_FILE
from gptx.task import read_task
from gptx_models.checkpoint import SOURCE, save_checkpoint
from gptx_models.peft_files import CONFIG, base_of, is_adapter, load_adapter
from gptx_models.tensor_files import read_json


def merge(adapter: Path, out: Path, *, base: Path | None = None, force: bool = False) -> None:
    """Write the checkpoint folder `out`. base: instead of the one that the adapter names. Raises CheckpointError."""
    if not is_adapter(adapter):
        raise CheckpointError(f"{adapter} is no adapter folder: it has no {CONFIG}")
    base = base_of(adapter, base)
    for source in (adapter, base):
        check_apart(source, out)
    check_output(out, force=force)
    gpt = load_adapter(adapter, base)
    generation = next((read_json(f / "generation_config.json") for f in (adapter, base) if _has_generation(f)), {})
    source: dict[str, Any] = {"format": "gptx-merge", "name": adapter.name}
    for name, folder in (("adapter", adapter), ("base", base)):
        source[name] = read_json(folder / SOURCE) if (folder / SOURCE).exists() else {"name": folder.name}
    with new_folder(out, force=force) as folder:
        tokenizer = adapter if (adapter / "tokenizer.json").exists() else base
        task = read_task(adapter)
        labels = task.labels if task and task.head else ()
        save_checkpoint(gpt, folder, tokenizer_files=tokenizer, source=source, generation=generation, labels=labels)
        if (adapter / TASK_FILE).exists():
            shutil.copyfile(adapter / TASK_FILE, folder / TASK_FILE)


def _has_generation(folder: Path) -> bool:
    return (folder / "generation_config.json").exists()


@click.command("merge")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), help="The base checkpoint.  [default: the one ADAPTER names]")
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
def command(adapter: Path, out: Path, base: Path | None, force: bool) -> None:
    """Merge ADAPTER, a LoRA adapter of `gptx finetune` or PEFT, into its base and write the checkpoint folder OUT."""
    merge(adapter, out, base=base, force=force)
    click.echo(f"{out}: next: gptx export {out} {out}-onnx")
