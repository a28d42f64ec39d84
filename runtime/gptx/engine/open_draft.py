"""Open a draft model beside a model: an artifact's path in, its graph out, or one error.

A draft model guesses token ids, so both models must mean the same by each id.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gptx.artifact.manifest import Manifest, read_manifest
from gptx.errors import UsageError
from gptx.ort.graph import OnnxGraph
from gptx.text.tokenizer import Tokenizer, load_tokenizer

TOKENIZER = "tokenizer.json"


def open_draft(
    path: str | Path,
    graph: OnnxGraph,
    tokenizer: Tokenizer | None,
    opened: Callable[[Manifest], OnnxGraph],
) -> OnnxGraph:
    """The graph of a draft model. graph, tokenizer: of the model that it guesses for.

    opened: opens a graph on the device of the other. Raises UsageError if the vocabularies differ,
    one of the models has a classification head or runs without native operators; ArtifactError and
    others as gptx.load.
    """
    model, manifest = graph.manifest, read_manifest(path)
    for one in (model, manifest):
        if one.model.n_class:
            raise UsageError(
                f"{one.path} is a classification model: a draft model guesses the text of a"
                " language model, with another"
            )
    _need_native_operators(graph)
    if problem := vocabulary_difference(model, tokenizer, manifest):
        raise UsageError(f"{manifest.path} cannot guess for {model.path}: {problem}")
    draft = opened(manifest)
    _need_native_operators(draft)
    return draft


def _need_native_operators(graph: OnnxGraph) -> None:
    if graph.kernels is None:
        raise UsageError(
            "a draft model needs native operators, which give the same bits with guesses as"
            f" without, and {graph.manifest.path} runs on ONNX Runtime's here: leave out the draft"
            " model (gptx doctor says what is missing)"
        )


def vocabulary_difference(
    model: Manifest, tokenizer: Tokenizer | None, draft: Manifest
) -> str | None:
    """How the vocabularies of a model and its draft model differ, as in "...: it has ..."; or None.

    Without tokenizers, the numbers of ids are compared. A padding behind the tokenizer's ids may
    differ.
    """
    ours, theirs = model.files.get(TOKENIZER), draft.files.get(TOKENIZER)
    if ours is not None and ours == theirs:
        return None
    size, other_size = (one.tokens.vocab_size or one.model.vocab_size for one in (model, draft))
    if size != other_size:
        return f"its vocabulary has {other_size:,} tokens, and the model's has {size:,}"
    other = load_tokenizer(
        draft.path, tokenizer_vocab_size=draft.tokens.vocab_size, vocab_size=draft.model.vocab_size
    )
    if tokenizer is None or other is None:
        return None if tokenizer is other else "only one of the two has a tokenizer"
    vocabulary, other_vocabulary = tokenizer.vocabulary(), other.vocabulary()
    different = vocabulary.items() ^ other_vocabulary.items()
    if not different:
        return None
    at = min(number for _, number in different)
    return (
        f"the vocabularies differ: token {at} is {other.token(at)!r}, and the model's is"
        f" {tokenizer.token(at)!r}"
    )
