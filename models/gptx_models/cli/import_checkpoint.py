"""`gptx import`: the options, and a line that describes the checkpoint."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import click

from gptx.artifact.uses import listed
from gptx.progress import note
from gptx_models.checkpoints.checkpoint import SOURCE, load_config, load_head
from gptx_models.checkpoints.gguf_blocks import BLOCKS
from gptx_models.checkpoints.read_files import read_json
from gptx_models.checkpoints.tensor_files import open_folder
from gptx_models.importers import import_checkpoint


@click.command("import")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, path_type=Path),
    help="A tokenizer.json, or a folder with one, where SOURCE has none (or in place of its own).",
)
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Let a .pt or .pkl file run code: only where you trust who wrote it.",
)
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
def import_(
    source: str, out: Path, tokenizer: Path | None, allow_pickle: bool, force: bool
) -> None:
    """Read SOURCE and write a checkpoint folder OUT, which `gptx export` takes.

    SOURCE is a Hugging Face folder (gpt2, openai-gpt, llama, mistral) or its name on the hub
    (org/name), a GGUF file (llama, gpt2), nanoGPT's ckpt.pt, or a .bin file of llama2.c.
    """
    folder = import_checkpoint(
        source, out, tokenizer=tokenizer, allow_pickle=allow_pickle, force=force, tell=note
    )
    note(describe(folder))
    note(f"next: gptx export {shlex.quote(str(out))} {shlex.quote(f'{out}-onnx')}")


def describe(folder: Path) -> str:
    """One line about a checkpoint folder: shape, tokenizer, size."""
    config, raw, source = (
        load_config(folder),
        read_json(folder / "config.json"),
        read_json(folder / SOURCE),
    )
    parameters = sum(_count(shape) for shape in open_folder(folder).shapes.values())
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    blocks = sizes.pop(BLOCKS, 0)
    parts = [
        f"{raw['model_type']} of {parameters / 1e6:,.1f}M parameters",
        f"{config.n_layer} layers of width {config.n_embd}",
        f"context of {config.n_ctx:,} tokens",
        *_head(folder, config.n_class),
        _tokenizer(folder, config.vocab_size),
        f"{sum(sizes.values()) / 1e6:,.1f} MB in fp32{_stored(source)}",
        *([f"{blocks / 1e6:,.1f} MB of the file's own blocks in {BLOCKS}"] if blocks else []),
    ]
    return f"wrote {folder}: {', '.join(parts)}"


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _head(folder: Path, n_class: int) -> list[str]:
    head = load_head(folder) if n_class else None
    return [f"classification head for {listed(head.labels)}"] if head else []


def _tokenizer(folder: Path, vocab_size: int) -> str:
    path = folder / "tokenizer.json"
    if not path.exists():
        return f"no tokenizer (vocabulary of {vocab_size:,})"
    content = read_json(path)
    ids = {
        *content["model"].get("vocab", {}),
        *(token["content"] for token in content.get("added_tokens", [])),
    }
    padded = f" in a vocabulary of {vocab_size:,}" if len(ids) < vocab_size else ""
    template = " with a chat template" if (folder / "chat_template.jinja").exists() else ""
    return f"tokenizer of {len(ids):,} tokens{padded}{template}"


def _stored(source: dict[str, Any]) -> str:
    """The weights' types in the source, the most frequent first: " (from Q4_1, F32, Q8_0)"."""
    kinds = [kind for kind, _ in Counter(source.get("tensor_types", {}).values()).most_common()]
    return f" (from {', '.join(kinds)})" if kinds and kinds != ["F32"] else ""
