"""The tokenizer that `gptx import --tokenizer PATH` names.

PATH is a tokenizer.json, a tokenizer.model, a folder with a tokenizer, nanoGPT's meta.pkl or
llama2.c's tokenizer.bin.
"""

from __future__ import annotations

from pathlib import Path

from gptx.errors import CheckpointError
from gptx_models.checkpoints.read_files import check_file
from gptx_models.checkpoints.tokenizer_files import (
    TokenizerFiles,
    read_tokenizer_folder,
    read_tokenizer_json,
    read_tokenizer_model,
)
from gptx_models.importers.llama2c import read_tokenizer_bin
from gptx_models.importers.nanogpt import read_meta


def read_tokenizer_path(
    path: Path, vocab_size: int, *, allow_pickle: bool = False
) -> TokenizerFiles:
    """The tokenizer at `path`; the end of its name says the format.

    vocab_size: the model's. allow_pickle: a meta.pkl may run code. Raises CheckpointError.
    """
    if path.is_dir():
        found = read_tokenizer_folder(path, vocab_size)
        if not found.files:
            raise CheckpointError(
                f"{path} holds neither tokenizer.json nor vocab.json with merges.txt nor"
                " tokenizer.model"
            )
        return found
    check_file(path)
    if path.suffix == ".pkl":
        return read_meta(path, allow_pickle=allow_pickle)
    if path.suffix == ".bin":
        return read_tokenizer_bin(path, vocab_size)
    if path.suffix == ".model":
        return read_tokenizer_model(path)
    return read_tokenizer_json(path)
