"""tokenizer.ggml.* of a GGUF file -> tokenizer.json and its companions.

Two kinds: `gpt2`, byte-level BPE with merges, whose pre-tokenizer `tokenizer.ggml.pre` names; `llama`, SentencePiece's
BPE with scores. Token ids equal llama.cpp's (the tests compare). An unknown pre-tokenizer is an error, not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from gptx.errors import CheckpointError
from gptx_models.importers.imported import Tell
from gptx_models.sentencepiece import sentencepiece_tokenizer
from gptx_models.tokenizer_files import TokenizerFiles, companions, with_bos_eos

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6  # tokenizer.ggml.token_type; 1 is normal

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CASELESS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CASELESS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_TEKKEN = rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class _Pre:
    """How a text is cut into words: the pattern of each cut, one after another; and what llama.cpp assumes besides."""

    cuts: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    add_bos: bool = False  # unless the file says otherwise


_DIGITS = _Pre((r"\p{N}", _GPT2))
_PLAIN = _Pre((_GPT2,))
_LLAMA = _Pre((_LLAMA3,), ignore_merges=True, add_bos=True)
_DEFAULT = _Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
PRE_TOKENIZERS: dict[str, _Pre] = {
    "default": _DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "modern-bert", "mellum"), _PLAIN),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _Pre((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "stablelm2", "megrez", "deepseek-r1-qwen"), _Pre((_QWEN2,))),
    "falcon": _Pre((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "tekken": _Pre((_TEKKEN,), ignore_merges=True, add_bos=True),
}


def read_tokenizer(metadata: dict[str, Any], where: str, *, tell: Tell) -> TokenizerFiles:
    """The tokenizer in a GGUF file's metadata. Raises CheckpointError."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind in (None, "no_vocab", "none"):
        return TokenizerFiles()
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(
            f"{where}: the tokenizer is of kind {kind!r}, and gptx reads gpt2 (byte-level BPE) and llama "
            "(SentencePiece): give a tokenizer.json with --tokenizer"
        )
    vocab = _Vocabulary.of(metadata, where)
    tokenizer, add_bos = (_byte_level if kind == "gpt2" else _sentencepiece)(metadata, vocab, where, tell)
    ids = {name: _id(metadata, key, vocab) for name, key in _SPECIAL.items()}
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)) and ids["bos"] is not None
    add_eos = bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and ids["eos"] is not None
    tokenizer.add_special_tokens(_added(vocab, (CONTROL, UNKNOWN), also=_marks(ids, vocab)))
    tokenizer.add_tokens(_added(vocab, (USER_DEFINED,)))
    names = {name: vocab.tokens[token] for name, token in ids.items() if token is not None}
    with_bos_eos(tokenizer, names.get("bos") if add_bos else None, names.get("eos") if add_eos else None)
    files = companions(
        tokenizer,
        tokenizer_class="GPT2Tokenizer" if kind == "gpt2" else "LlamaTokenizer",
        special={name: names[name] for name in ("bos", "eos", "unk", "pad") if name in names},
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=metadata.get("tokenizer.chat_template"),
    )
    return TokenizerFiles(files, _generation(ids))


_SPECIAL = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
    "eot": "eot_token_id",  # the end of a turn, where it is not eos
    "eom": "eom_token_id",
}


def _generation(ids: dict[str, int | None]) -> dict[str, Any]:
    ends = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    ends = list(dict.fromkeys(ends))
    tokens = {"bos_token_id": ids["bos"], "eos_token_id": ends if len(ends) > 1 else (ends or [None])[0]}
    return {name: value for name, value in {**tokens, "pad_token_id": ids["pad"]}.items() if value is not None}


@dataclass
class _Vocabulary:
    tokens: list[str]
    types: list[int]
    scores: list[float]

    @classmethod
    def of(cls, metadata: dict[str, Any], where: str) -> _Vocabulary:
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not tokens:
            raise CheckpointError(f"{where}: tokenizer.ggml.tokens is missing: give a tokenizer.json with --tokenizer")
        types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
        scores = metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
        if not len(tokens) == len(types) == len(scores):
            raise CheckpointError(
                f"{where}: tokenizer.ggml has {len(tokens)} tokens, {len(types)} types and {len(scores)} scores"
            )
        end = len(tokens)
        while end and types[end - 1] == UNUSED:  # padding of the vocabulary, never to be sampled
            end -= 1
        return cls(tokens[:end], types[:end], scores[:end])


def _id(metadata: dict[str, Any], key: str, vocab: _Vocabulary) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    return value if value is not None and 0 <= value < len(vocab.tokens) else None


def _added(vocab: _Vocabulary, kinds: tuple[int, ...], *, also: Collection[int] = ()) -> list[AddedToken]:
    """Tokens that are found in a text before it is cut: those of some types, and a few by their ids."""
    return [
        AddedToken(token, special=USER_DEFINED not in kinds, normalized=False)
        for token_id, (token, kind) in enumerate(zip(vocab.tokens, vocab.types))
        if kind in kinds or token_id in also
    ]


def _marks(ids: dict[str, int | None], vocab: _Vocabulary) -> set[int]:
    """Ends that are typed as normal tokens, as in old files. (Some files name "!" as padding: that stays a word.)"""
    ends = {ids[name] for name in ("bos", "eos", "eot", "eom")}
    return {token for token in ends if token is not None and re.fullmatch(r"<.+>|\[.+\]", vocab.tokens[token])}


def _byte_level(metadata: dict[str, Any], vocab: _Vocabulary, where: str, tell: Tell) -> tuple[Tokenizer, bool]:
    name = metadata.get("tokenizer.ggml.pre")
    if name is None:
        tell(f"{where} names no pre-tokenizer (tokenizer.ggml.pre): llama.cpp's default is used, as it would be there")
        name = "default"
    if name not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"{where}: tokenizer.ggml.pre is {name!r}, and gptx knows {', '.join(sorted(PRE_TOKENIZERS))}: "
            "give the model's own tokenizer.json with --tokenizer"
        )
    pre = PRE_TOKENIZERS[name]
    merges = metadata.get("tokenizer.ggml.merges")
    if merges is None:
        raise CheckpointError(f"{where}: tokenizer.ggml.merges is missing: give a tokenizer.json with --tokenizer")
    pairs = [_pair(merge) for merge in merges]
    ids = {token: token_id for token_id, token in enumerate(vocab.tokens)}
    try:
        bpe = models.BPE(ids, pairs, ignore_merges=pre.ignore_merges)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{where}: the merges do not fit the vocabulary: {error}") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = _cutter(pre)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre.add_bos


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge[1:].partition(" ")  # a left part may itself begin with a space
    return merge[0] + left, right


def _cutter(pre: _Pre) -> pre_tokenizers.PreTokenizer:
    """GPT-2's own cut is part of ByteLevel, which every loader knows; other cuts are written out."""
    *before, last = pre.cuts
    built_in = last == _GPT2
    if before == [r"\p{N}"] and built_in:
        parts: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Digits(individual_digits=True)]
    else:
        cuts = before if built_in else pre.cuts
        parts = [pre_tokenizers.Split(Regex(cut), "isolated") for cut in cuts]
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=built_in))
    return parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)


def _sentencepiece(metadata: dict[str, Any], vocab: _Vocabulary, where: str, tell: Tell) -> tuple[Tokenizer, bool]:
    normal = [kind not in (CONTROL, UNKNOWN, UNUSED, BYTE) for kind in vocab.types]
    unknown = _id(metadata, "unknown_token_id", vocab)
    tokenizer = sentencepiece_tokenizer(
        vocab.tokens,
        vocab.scores,
        normal,
        unknown=None if unknown is None else vocab.tokens[unknown],
        space_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
    )
    return tokenizer, True
