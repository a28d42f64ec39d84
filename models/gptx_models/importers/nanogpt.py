"""nanoGPT's ckpt.pt -> GPT, and its meta.pkl -> a tokenizer of single characters.

Unless `allow_pickle` is set, both files may hold tensors and plain values only, so that neither can
run code.
"""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from gptx.artifact.hashes import sha256
from gptx.errors import CheckpointError
from gptx_models.checkpoints.family import family_of
from gptx_models.checkpoints.hf_names import LAYOUTS, written_names
from gptx_models.checkpoints.read_files import check_file
from gptx_models.checkpoints.tensor_source import showing_progress, without_wrappers
from gptx_models.checkpoints.tokenizer_files import TokenizerFiles
from gptx_models.checkpoints.torch_files import load_torch_file, state_dict_source
from gptx_models.checkpoints.weights import build
from gptx_models.checkpoints.write_tokenizer import new_tokenizer_files
from gptx_models.gpt.config import GPTConfig
from gptx_models.importers.imported import Imported, Tell, quiet

# GPT-2's names, with the weights of linears as torch.nn.Linear has them: (out, in)
LAYOUT = LAYOUTS["gpt2"].untransposed()
_FIELDS = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


def import_nanogpt(
    path: Path, *, allow_pickle: bool = False, tokenizer_wanted: bool = True, tell: Tell = quiet
) -> Imported:
    """Read a ckpt.pt, and the meta.pkl of its data set if it is found.

    `tell` is called with a line about the meta.pkl. Raises CheckpointError.
    """
    checkpoint = load_torch_file(path, allow_pickle=allow_pickle)
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= set(checkpoint):
        raise CheckpointError(
            f"{path} is not a checkpoint of nanoGPT: expected the keys model and model_args"
        )
    config = _config(checkpoint["model_args"], str(path))
    source = without_wrappers(state_dict_source(checkpoint["model"], str(path)))
    with showing_progress(source) as tensors:
        model = build(config, LAYOUT, tensors)
    names = written_names(model, LAYOUT, LAYOUTS[family_of(config)])
    about = {
        "format": "nanogpt",
        "name": path.parent.name or path.stem,
        "sha256": {path.name: sha256(path)},
        "tensor_types": {names[name]: kind for name, kind in source.types.items() if name in names},
    }
    meta = _find_meta(path, checkpoint) if tokenizer_wanted else None
    if meta is None:
        return Imported(model, about)
    tell(f"the tokenizer is made from {meta}")
    return Imported(model, about, read_meta(meta, allow_pickle=allow_pickle).files)


def _config(args: dict[str, Any], where: str) -> GPTConfig:
    """The GPTConfig of the checkpoint's model_args."""
    if not isinstance(args, dict):
        raise CheckpointError(
            f"{where}: model_args is {args!r:.80}, expected nanoGPT's settings by name"
        )
    missing = [name for name in _FIELDS if args.get(name) is None]
    if missing:
        raise CheckpointError(
            f"{where}: model_args lacks {', '.join(missing)}: it is not a checkpoint of nanoGPT's"
            " GPT"
        )
    bias = args.get("bias", True)
    try:
        return GPTConfig(
            vocab_size=args["vocab_size"],
            n_ctx=args["block_size"],
            n_layer=args["n_layer"],
            n_head=args["n_head"],
            n_embd=args["n_embd"],
            activation="gelu",  # nanoGPT uses nn.GELU(), for OpenAI's GPT-2 weights too
            attn_bias=bias,
            mlp_bias=bias,
            norm_bias=bias,
            dropout=args.get("dropout", 0.0),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def _find_meta(path: Path, checkpoint: dict[str, Any]) -> Path | None:
    """The meta.pkl of a checkpoint: beside it, or where nanoGPT's data scripts write it.

    The data scripts write data/DATASET/meta.pkl; data/ stands beside the folder of ckpt.pt.
    """
    settings = checkpoint.get("config")
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    places = [path.parent / "meta.pkl"]
    if isinstance(dataset, str) and dataset:
        places.append(path.parent.parent / "data" / dataset / "meta.pkl")
    return next((place for place in places if os.path.exists(place)), None)


class _PlainUnpickler(pickle._Unpickler):
    """Unpickles dicts, lists, strings and numbers, and refuses every class and function.

    It extends the unpickler written in Python. The one in C allocates gigabytes for a small file
    that states a huge length or index.
    """

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_meta(path: Path, *, allow_pickle: bool = False) -> TokenizerFiles:
    """The tokenizer in nanoGPT's meta.pkl, whose `stoi` has an id for each character.

    allow_pickle: the file may run code. Raises CheckpointError.
    """
    ids = _character_ids(_unpickle(path, allow_pickle=allow_pickle), path)
    return TokenizerFiles(
        new_tokenizer_files(
            character_tokenizer(ids), tokenizer_class="PreTrainedTokenizerFast", special={}
        )
    )


def _unpickle(path: Path, *, allow_pickle: bool) -> Any:
    """The object in a pickle file. Raises CheckpointError."""
    check_file(path)
    try:
        if allow_pickle:
            with path.open("rb") as file:
                return pickle.load(file)
        return _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than plain values, or is broken ({error}): if you trust its author,"
            " read it with --allow-pickle, which runs code from the file"
        ) from error
    except Exception as error:  # a file that is no pickle can raise anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is not a whole pickle file: {first}") from error


def _character_ids(meta: Any, path: Path) -> dict[str, int]:
    """The id of each character, from `stoi` in meta. The ids must be 0 to len(stoi) - 1."""
    stoi = meta.get("stoi") if isinstance(meta, dict) else None
    if not isinstance(stoi, dict) or not all(
        isinstance(c, str) and len(c) == 1 and not _is_surrogate(c) for c in stoi
    ):
        raise CheckpointError(
            f"{path} is not a meta.pkl of nanoGPT's characters: expected stoi, from character to id"
        )
    if any(type(token) is not int for token in stoi.values()) or set(stoi.values()) != set(
        range(len(stoi))
    ):
        raise CheckpointError(
            f"{path}: stoi has other ids than 0 to {len(stoi) - 1}, each once, as nanoGPT writes"
        )
    return stoi


def _is_surrogate(character: str) -> bool:
    """True for half of a surrogate pair, which is no text."""
    return "\ud800" <= character <= "\udfff"


def character_tokenizer(ids: dict[str, int]) -> Tokenizer:
    """A tokenizer with one token for each character; encoding an unknown character is an error."""
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer
