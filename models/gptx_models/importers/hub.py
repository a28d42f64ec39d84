"""Download a model from the Hugging Face hub by its name org/name, and import it.

The package huggingface_hub downloads, caches and resumes. Only the files that the import reads are
downloaded.
"""

from __future__ import annotations

from pathlib import Path

from gptx.errors import CheckpointError
from gptx_models.checkpoints.checkpoint import load_config
from gptx_models.importers.huggingface import import_folder
from gptx_models.importers.imported import Imported, Tell, quiet

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "README.md",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "gptx_task.json",
    "MODEL_CARD.md",
    # older forms of a tokenizer
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_OLD_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


def import_hub(name: str, *, tokenizer_wanted: bool = True, tell: Tell = quiet) -> Imported:
    """Download the model `name`, unless it is in the cache, and import it.

    `tell` is called with a line for what is assumed or left out. Raises CheckpointError.
    """
    tell(f"{name} is no path here: looking for it on the Hugging Face hub")
    folder = download(name)
    imported = import_folder(folder, tokenizer_wanted=tokenizer_wanted, tell=tell)
    # The folder is snapshots/<commit> in the cache.
    imported.source |= {"name": name, "revision": folder.name}
    return imported


def download(name: str, *, covered: bool = True) -> Path:
    """The folder in huggingface_hub's cache with a model's files, downloaded if needed.

    covered: before the weights are downloaded, refuse a model that our GPT cannot compute. Raises
    CheckpointError.
    """
    folder = _snapshot(name, _SMALL_FILES)
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"{name} on the hub has no config.json: it is not a model in Hugging Face's form "
            "(for GGUF, download the file and name it)"
        )
    if covered:
        load_config(folder)
    folder = _snapshot(name, _WEIGHTS)
    return folder if any(folder.glob("model*.safetensors")) else _snapshot(name, _OLD_WEIGHTS)


def _snapshot(name: str, patterns: tuple[str, ...]) -> Path:
    """Download the files of a model that match the patterns, and return their folder."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub import errors as hub

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except hub.GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated: accept its terms at {constants.ENDPOINT}/{name}, then log in with"
            " `hf auth login`"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name} is neither a path here nor a model on {constants.ENDPOINT} "
            "(if it is private, log in with `hf auth login`)"
        ) from error
    except hub.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name} is not in the cache, and {constants.ENDPOINT} cannot be reached: check the"
            " network, or download the model elsewhere and name the folder"
        ) from error
    except Exception as error:
        if (
            not isinstance(error, OSError | hub.HFValidationError)
            and type(error).__module__.split(".")[0] != "httpx"
        ):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"downloading {name} failed ({first}): run it again, it goes on where it stopped"
        ) from error
