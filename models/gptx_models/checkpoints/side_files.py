"""The files of a checkpoint beside its weights: read from a folder, and written so that they agree with each other.

`gptx import` and `gptx export` both read with `read_side_files`, and write config.json and generation_config.json with
`write_configs`: a folder that is exported at once and one that is imported first become the same artifact. Knows
nothing of weights.
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
from gptx_models.checkpoints.token_ids import IDS, resolve_ids
from gptx_models.checkpoints.tokenizer_files import TokenizerFiles, quiet, read_tokenizer_folder
from gptx_models.checkpoints.tokenizer_overlay import Tell

CARD = "MODEL_CARD.md"  # a checkpoint's own words about itself
KEPT = (TASK, CARD)


@dataclass
class SideFiles:
    """`tokenizer` and `kept` are texts by file name, `generation` becomes generation_config.json."""

    tokenizer: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """All but config.json and generation_config.json."""
        for name, text in (self.tokenizer | self.kept).items():
            (folder / name).write_text(text, "utf-8")


def read_side_files(
    folder: Path, vocab_size: int, *, tokenizer: TokenizerFiles | None = None, tell: Tell = quiet
) -> SideFiles:
    """The side files of a Hugging Face folder whose model has `vocab_size` ids. tokenizer: instead of the folder's. `tell`
    is given a line for each thing that is left out. Raises CheckpointError."""
    if tokenizer is None:
        tokenizer = read_tokenizer_folder(folder, vocab_size, tell=tell)
    if _adds_token_types(read_json(folder / "config.json"), tokenizer.files):
        tell(
            f"{folder}: transformers' pipeline adds the embedding of token 0 to each token's, as this tokenizer gives"
            " token_type_ids and its GPT-2 takes them; gptx does not. Where the model was trained without them, say"
            ' "model_input_names": ["input_ids", "attention_mask"] in tokenizer_config.json, and the two agree'
        )
    return SideFiles(
        tokenizer.files,
        generation_of(folder, tokenizer, vocab_size, tell),
        {name: read_text(folder / name) for name in KEPT if (folder / name).exists()},
    )


def _adds_token_types(config: dict[str, Any], files: dict[str, str]) -> bool:
    """Whether transformers' text-classification pipeline hands token_type_ids to the model, and the model adds the rows of
    its token embedding that they name. Its generation is called without them."""
    if config.get("model_type") not in ("gpt2", "openai-gpt") or head_of(config) is None:
        return False
    settings = json.loads(files.get("tokenizer_config.json", "{}"))
    names = settings.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    return settings.get("tokenizer_class") in (
        "PreTrainedTokenizerFast",
        "BertTokenizer",
        "BertTokenizerFast",
    )


def generation_of(
    folder: Path,
    tokenizer: TokenizerFiles,
    vocab_size: int,
    tell: Tell = quiet,
    *,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """generation_config.json, with the ids that begin, end and pad a text as token_ids.py resolves them. adapter: a
    folder whose generation_config.json goes before the one in `folder`.

    Where neither folder has one, its fields are read from config.json, where they stood before it was invented;
    transformers does the same. A top_k of null stays, as 0: it is off, and an absent one is 50.
    """
    files = [place / "generation_config.json" for place in (adapter, folder) if place is not None]
    places = [(str(file), read_json(file)) for file in files if file.exists()]
    config = (str(folder / "config.json"), read_json(folder / "config.json"))
    legacy = {
        name: value
        for name, value in config[1].items()
        if FIELDS.get(name, "no effect") not in ("no effect", "token")
    }
    others: dict[str, Any] = {}
    for fields in [fields for _, fields in reversed(places)] or [legacy]:
        off = {"top_k": 0} if places and fields.get("top_k", 0) is None else {}
        others |= off | {
            name: value for name, value in fields.items() if name not in IDS and value is not None
        }
    own = (f"{folder}: the tokenizer", tokenizer.generation)
    return {**resolve_ids([*places, config, own], vocab_size, tell), **others}
