"""A SentencePiece BPE vocabulary (tokens with scores, byte tokens) -> a tokenizer.

GGUF files of kind llama and llama2.c's tokenizer.bin hold such vocabularies. Merges have the order
of llama.cpp and run.c; sentencepiece_model.py uses transformers' order.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers

from gptx_models.checkpoints.tokenizer_parts import sentencepiece_decoder


def sentencepiece_tokenizer(
    tokens: Sequence[str],
    scores: Sequence[float],
    mergeable: Sequence[bool],
    *,
    unknown: str | None,
    space_prefix: bool,
) -> Tokenizer:
    """The tokenizer of a vocabulary, given by token id.

    mergeable: for each token, whether a merge may produce it (false for control and byte tokens).
    unknown: the text of the unknown token. space_prefix: a space is put before each text.
    """
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            ids,
            _merges(ids, tokens, scores, mergeable),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prepend: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = sentencepiece_decoder(strip_space=space_prefix)
    return tokenizer


def _merges(
    ids: dict[str, int], tokens: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool]
) -> list[tuple[str, str]]:
    """All pairs of tokens that join to a token, sorted by its score, the highest first."""
    merges: list[tuple[float, int, int, tuple[str, str]]] = []
    for token, score, is_mergeable in zip(tokens, scores, mergeable):
        cuts = range(1, len(token)) if is_mergeable else ()
        for left, right in ((token[:cut], token[cut:]) for cut in cuts):
            if left in ids and right in ids:
                merges.append((-score, ids[left], ids[right], (left, right)))
    merges.sort(key=lambda merge: merge[:3])
    return [pair for *_, pair in merges]
