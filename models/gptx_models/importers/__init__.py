"""Checkpoints of other projects -> a checkpoint folder of gptx.

`import_checkpoint` takes a Hugging Face folder or hub name, a GGUF file, nanoGPT's ckpt.pt or
llama2.c's .bin. Each format has a module of its own; this one chooses between them.
"""

from __future__ import annotations

import re
from pathlib import Path

from gptx.artifact.folders import MANIFEST, check_apart, check_output, kind_of, new_folder
from gptx.errors import CheckpointError
from gptx_models.checkpoints.checkpoint import save_checkpoint
from gptx_models.checkpoints.gguf_blocks import write_blocks
from gptx_models.checkpoints.read_files import check_file
from gptx_models.checkpoints.tokenizer_files import check_vocabulary
from gptx_models.importers.imported import Imported, Tell, quiet
from gptx_models.importers.tokenizer_path import read_tokenizer_path

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_ENDINGS = (".gguf", ".bin", ".pt", ".pth", ".safetensors", ".json", ".onnx")
_TAKES = "a Hugging Face folder or org/name, a .gguf file, nanoGPT's ckpt.pt or llama2.c's .bin"


def import_checkpoint(
    source: str,
    out: Path,
    *,
    tokenizer: Path | None = None,
    allow_pickle: bool = False,
    force: bool = False,
    tell: Tell = quiet,
) -> Path:
    """Read `source` and write a checkpoint folder at `out`, whole or not at all. Returns `out`.

    source: a path, or the name of a model on the Hugging Face hub. tokenizer: a path that
    read_tokenizer_path takes; it wins over the tokenizer of `source`. allow_pickle: a PyTorch file
    or meta.pkl may run code. force: replace `out`. `tell` is called with a line for what is missing
    or assumed. Raises CheckpointError, OutputError.
    """
    out = Path(out)
    check_apart(Path(source), out)
    check_output(out, force=force)
    imported = read(
        source, allow_pickle=allow_pickle, tokenizer_wanted=tokenizer is None, tell=tell
    )
    vocab_size = imported.model.config.vocab_size
    if tokenizer is not None:
        given = read_tokenizer_path(Path(tokenizer), vocab_size, allow_pickle=allow_pickle)
        imported.tokenizer = given.files
        imported.generation = {**given.generation, **imported.generation}
    parameters = sum(p.numel() for p in imported.model.parameters())
    stored = [part.data for parts in imported.blocks.values() for part in parts]
    needed = 4 * parameters + sum(data.nbytes for data in stored if data is not None)
    with new_folder(out, force=force, needed=needed) as folder:
        for name, text in (imported.tokenizer | imported.kept).items():
            (folder / name).write_text(text, "utf-8")
        if imported.tokenizer:
            check_vocabulary(folder / "tokenizer.json", vocab_size, shown_as=tokenizer or source)
        else:
            tell(
                f"{source} has no tokenizer: the model takes token ids only, unless you give one"
                " with --tokenizer"
            )
        save_checkpoint(
            imported.model,
            folder,
            tokenizer_files=None,
            source=imported.source,
            generation=imported.generation,
            head=imported.head,
        )
        if imported.blocks:
            write_blocks(folder, imported.blocks)
    return out


def read(
    source: str, *, allow_pickle: bool = False, tokenizer_wanted: bool = True, tell: Tell = quiet
) -> Imported:
    """The model at `source`: a path, or a hub name if no such path exists.

    Raises CheckpointError.
    """
    path = Path(source)
    kind = kind_of(path)
    if kind == "missing":
        return _from_hub(source, tokenizer_wanted=tokenizer_wanted, tell=tell)
    if kind == "artifact":
        raise CheckpointError(
            f"{source} is an ONNX artifact (it has {MANIFEST}), not a checkpoint: run it with"
            f" `gptx run -m {source}`, or make it smaller with `gptx quantize {source} OUT`"
        )
    if kind == "checkpoint":
        from gptx_models.importers.huggingface import import_folder

        return import_folder(path, tokenizer_wanted=tokenizer_wanted, tell=tell)
    if kind == "adapter":
        raise CheckpointError(
            f"{source} is a LoRA adapter (it has adapter_config.json): gptx merge {source} OUT"
            " makes a checkpoint of it and its base"
        )
    if kind == "folder":
        raise CheckpointError(
            f"{source} holds no config.json{_files_to_name(path)}: gptx import takes {_TAKES}"
        )
    return _from_file(path, allow_pickle=allow_pickle, tokenizer_wanted=tokenizer_wanted, tell=tell)


def _files_to_name(folder: Path) -> str:
    """The part of an error about a folder that lists files that the user may have meant."""
    found = sorted(p.name for p in folder.iterdir() if p.suffix in (".gguf", ".pt", ".bin"))
    return f", but {', '.join(found)}: name that file" if found else ""


def _from_file(path: Path, *, allow_pickle: bool, tokenizer_wanted: bool, tell: Tell) -> Imported:
    """The model in one file; its first bytes and the end of its name say the format."""
    check_file(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        from gptx_models.importers.gguf import import_gguf

        return import_gguf(path, tokenizer_wanted=tokenizer_wanted, tell=tell)
    if path.suffix in (".pt", ".pth", ".ckpt") or start[:2] == b"PK":
        from gptx_models.importers.nanogpt import import_nanogpt

        return import_nanogpt(
            path, allow_pickle=allow_pickle, tokenizer_wanted=tokenizer_wanted, tell=tell
        )
    if path.suffix == ".gguf":
        raise CheckpointError(
            f"{path} is not a GGUF file (it begins with {start!r}): copy or download it again"
        )
    if path.suffix == ".bin":
        from gptx_models.importers.llama2c import import_llama2c

        return import_llama2c(path, tokenizer_wanted=tokenizer_wanted, tell=tell)
    if path.suffix in (".safetensors", ".json"):
        raise CheckpointError(
            f"{path} is one file of a Hugging Face folder: name the folder, {path.parent or '.'}"
        )
    raise CheckpointError(f"{path} is not a file that gptx reads: it takes {_TAKES}")


def _from_hub(source: str, *, tokenizer_wanted: bool, tell: Tell) -> Imported:
    # runs/model.gguf looks like a hub name; if it is not there, it is a mistyped path.
    if not _HUB_NAME.fullmatch(source) or source.endswith(_FILE_ENDINGS):
        raise CheckpointError(f"{source} does not exist: gptx import takes {_TAKES}")
    from gptx_models.importers.hub import import_hub

    return import_hub(source, tokenizer_wanted=tokenizer_wanted, tell=tell)
