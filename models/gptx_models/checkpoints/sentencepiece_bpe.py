"""SentencePiece's BPE (tokens with scores, bytes where a character has no token) as a `tokenizers` Tokenizer.

GGUF files of kind llama and llama2.c's tokenizer.bin hold such vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers


def sentencepiece_tokenizer(
    tokens: Sequence[str],
    scores: Sequence[float],
    normal: Sequence[bool],
    *,
    unknown: str | None,
    space_prefix: bool,
) -> Tokenizer:
    """A merge ranks by its result's score. `normal` says which tokens a merge may make: not control or byte tokens."""
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    merges: list[tuple[float, int, int, tuple[str, str]]] = []
    for token, score, mergeable in zip(tokens, scores, normal):
        cuts = range(1, len(token)) if mergeable else ()
        for left, right in ((token[:cut], token[cut:]) for cut in cuts):
            if left in ids and right in ids:
                merges.append((-score, ids[left], ids[right], (left, right)))
    merges.sort(key=lambda merge: merge[:3])
    pairs = [pair for *_, pair in merges]
    tokenizer = Tokenizer(
        models.BPE(ids, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    steps: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    parts: list[decoders.Decoder] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    tokenizer.decoder = decoders.Sequence(
        [*parts, decoders.Strip(" ", 1, 0)] if space_prefix else parts
    )
    return tokenizer
