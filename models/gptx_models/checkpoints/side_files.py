"""The files of a checkpoint beside its weights, read from a folder so that they agree.

`gptx import` and `gptx export` both read with `read_side_files`, so a folder that is exported
directly and one that is imported first become the same artifact. Knows nothing of weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptx.artifact.task import FILE as TASK
from gptx.generation.generation_config import FIELDS
from gptx_models.checkpoints.head_fields import head_of
from gptx_models.checkpoints.read_files import read_json, read_text
from gptx_models.checkpoints.tell import Tell, quiet
from gptx_models.checkpoints.token_ids import IDS, resolve_ids
from gptx_models.checkpoints.tokenizer_files import TokenizerFiles, read_tokenizer_folder

CARD = "MODEL_CARD.md"  # a description of the model, for people
KEPT = (TASK, CARD)  # files that are copied unchanged
# Tokenizer classes that return token_type_ids unless model_input_names says otherwise.
_RETURN_TOKEN_TYPES = ("PreTrainedTokenizerFast", "BertTokenizer", "BertTokenizerFast")


@dataclass
class SideFiles:
    """The files beside the weights.

    tokenizer and kept: texts by file name. generation: becomes generation_config.json.
    """

    tokenizer: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the tokenizer and the kept files; not config.json and generation_config.json."""
        for name, text in (self.tokenizer | self.kept).items():
            (folder / name).write_text(text, "utf-8")


def read_side_files(
    folder: Path, vocab_size: int, *, tokenizer: TokenizerFiles | None = None, tell: Tell = quiet
) -> SideFiles:
    """The side files of a Hugging Face folder.

    vocab_size: the model's. tokenizer: taken in place of the folder's own. `tell` is called with a
    line for each thing that is left out. Raises CheckpointError.
    """
    if tokenizer is None:
        tokenizer = read_tokenizer_folder(folder, vocab_size, tell=tell)
    if _adds_token_types(read_json(folder / "config.json"), tokenizer.files):
        tell(
            f"{folder}: transformers' text-classification pipeline adds the embedding of token 0 to"
            " each token's embedding, because this tokenizer returns token_type_ids and its GPT-2"
            " takes them; gptx does not. If the model was trained without them, write"
            ' "model_input_names": ["input_ids", "attention_mask"] into tokenizer_config.json, and'
            " the two agree"
        )
    return SideFiles(
        tokenizer.files,
        generation_of(folder, tokenizer, vocab_size, tell),
        {name: read_text(folder / name) for name in KEPT if (folder / name).exists()},
    )


def _adds_token_types(config: dict[str, Any], files: dict[str, str]) -> bool:
    """True if transformers' text-classification pipeline gives the model token_type_ids.

    GPT-1 and GPT-2 then add the rows of the token embedding that these ids name. Generation never
    gives them.
    """
    if config.get("model_type") not in ("gpt2", "openai-gpt") or head_of(config) is None:
        return False
    settings = json.loads(files.get("tokenizer_config.json", "{}"))
    names = settings.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    return settings.get("tokenizer_class") in _RETURN_TOKEN_TYPES


def generation_of(
    folder: Path,
    tokenizer: TokenizerFiles,
    vocab_size: int,
    tell: Tell = quiet,
    *,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """The fields of generation_config.json, with token ids as token_ids.py resolves them.

    adapter: a folder whose generation_config.json wins over the one in `folder`. Raises
    CheckpointError.
    """
    names = [place / "generation_config.json" for place in (adapter, folder) if place is not None]
    files = [(str(file), read_json(file)) for file in names if file.exists()]
    config = read_json(folder / "config.json")
    places = [
        *files,
        (str(folder / "config.json"), config),
        (f"{folder}: the tokenizer", tokenizer.generation),
    ]
    token_ids = resolve_ids(places, vocab_size, tell)
    return {**token_ids, **_other_fields([fields for _, fields in files], config)}


def _other_fields(files: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """The generation settings other than token ids.

    files: the contents of all generation_config.json; the first wins. If there is none, the
    settings are read from config.json, as in transformers: old models have them there.
    """
    if not files:
        return {
            name: value
            for name, value in config.items()
            if FIELDS.get(name, "no effect") not in ("no effect", "token")
            and name not in IDS
            and value is not None
        }
    others: dict[str, Any] = {}
    for fields in reversed(files):
        if fields.get("top_k", 0) is None:
            others["top_k"] = 0  # null switches top_k off; without the field it would be 50
        others |= {
            name: value for name, value in fields.items() if name not in IDS and value is not None
        }
    return others
