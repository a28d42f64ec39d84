"""gptx_reference.safetensors: predictions of the reference model, carried by its artifact.

With them gptx verify compares the artifact with the reference model, but without that model.

tokens          int32 (P,)       the proof text, its windows one after the other
windows         int32 (W, 2)     start of each window in `tokens`, and its length
top_ids         uint16 or uint32 (P, 64)   tokens of the highest logits of each position
top_logits      float32 (P, 64)  their logits
logsumexp       float32 (P,)     over all logits of the position
target_logits   float32 (P,)     logit of the token that follows; NaN at the end of a window
full_positions  int32 (F,)       a few positions of which all logits are kept
full_logits     float32 (F, n_logits)      those logits
greedy_prompt   int32 (n,)       a prompt
greedy_tokens   int32 (m,)       the reference's greedy continuation of it
context_*                        positions of the whole context, see whole_context.py
words           uint8 (n,)       JSON: how tokenizer and template treat text, see text_record.py
seal            uint8 (n,)       JSON: hashes of the artifact when it was made, see seal.py

Artifacts made by an older gptx lack the last three.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from gptx.artifact.json_files import parse_json
from gptx.artifact.layout import REFERENCE as FILE
from gptx.artifact.manifest import Shape
from gptx.errors import ArtifactError
from gptx.parity.reference_problems import problems
from gptx.parity.seal import Seal, is_seal
from gptx.parity.text_record import is_record
from gptx.parity.whole_context import Context

TOP = 64  # highest logits that are kept of each position
_OPTIONAL = ("context", "words", "seal")  # fields that are no single array


@dataclass(frozen=True)
class Reference:
    """The arrays of the file by name, with its two JSON objects parsed."""

    tokens: np.ndarray
    windows: np.ndarray
    top_ids: np.ndarray
    top_logits: np.ndarray
    logsumexp: np.ndarray
    target_logits: np.ndarray
    full_positions: np.ndarray
    full_logits: np.ndarray
    greedy_prompt: np.ndarray
    greedy_tokens: np.ndarray
    context: Context | None = None
    words: dict[str, Any] | None = None
    seal: Seal | None = None

    def save(self, folder: Path) -> None:
        """Write gptx_reference.safetensors into `folder`."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OPTIONAL}
        if self.context is not None:
            arrays |= {f.name: getattr(self.context, f.name) for f in fields(self.context)}
        for name, value in (("words", self.words), ("seal", self.seal)):
            if value is not None:
                arrays[name] = np.frombuffer(dump(value), np.uint8)
        # safetensors' own save_file makes a file that only its owner can read.
        (folder / FILE).write_bytes(
            save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        )

    @classmethod
    def load(cls, folder: Path, shape: Shape) -> Reference:
        """Read gptx_reference.safetensors from `folder`.

        shape: the model's shape, which the arrays must fit. Raises ArtifactError if the file is
        missing or damaged, or holds arrays that do not fit such a model.
        """
        path = folder / FILE
        arrays = _load_arrays(path)
        names = {f.name for f in fields(cls)} - set(_OPTIONAL)
        of_context = {f.name for f in fields(Context)}
        has_context = bool(of_context & arrays.keys())
        missing = sorted((names | (of_context if has_context else set())) - arrays.keys())
        if missing:
            raise ArtifactError(f"{path} lacks {', '.join(missing)}: export the artifact again")
        reference = cls(
            **{name: arrays[name] for name in names},
            context=Context(**{name: arrays[name] for name in of_context}) if has_context else None,
            words=_parse(path, arrays, "words", is_record, "record of texts"),
            seal=_parse(path, arrays, "seal", is_seal, "seal"),
        )
        if wrong := list(problems(reference, shape)):
            raise ArtifactError(
                f"{path} is not a reference of this model: {'; '.join(wrong)}: copy it again"
            )
        return reference

    def token_windows(self) -> Iterator[tuple[int, list[int]]]:
        """(start, token ids) of each window."""
        for start, length in self.windows.tolist():
            yield start, self.tokens[start : start + length].tolist()


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} is missing, and verify compares with it: export again"
        ) from error
    except (SafetensorError, TypeError, ValueError, KeyError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): copy the artifact again") from error


def dump(value: dict[str, Any]) -> bytes:
    """`value` as the compact JSON that the file holds."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _parse(
    path: Path, arrays: dict[str, np.ndarray], name: str, is_one: Callable[[Any], bool], what: str
) -> dict[str, Any] | None:
    """The JSON object in an array of bytes; None if there is no such array.

    is_one: tells if the object has the right form. what: its name in messages. Raises ArtifactError
    if the array is not JSON of that form.
    """
    array = arrays.get(name)
    if array is None:
        return None
    if array.dtype != np.uint8 or array.ndim != 1:
        raise ArtifactError(
            f"{path}: {name} is {array.dtype} {list(array.shape)}, expected bytes of text:"
            " copy it again"
        )
    value = parse_json(
        array.tobytes(), f"{path}: {name}", ArtifactError, advice=": copy the artifact again"
    )
    if not is_one(value):
        raise ArtifactError(f"{path}: {name} is no {what}: export the artifact again")
    return value
