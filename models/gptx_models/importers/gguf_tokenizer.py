"""tokenizer.ggml.* of a GGUF file -> tokenizer.json and its companions.

Two kinds: `gpt2`, byte-level BPE with merges, whose pre-tokenizer `tokenizer.ggml.pre` names; `llama`, SentencePiece's
BPE with scores. Token ids equal llama.cpp's (the tests compare). An unknown pre-tokenizer is an error, not a guess.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from gptx.errors import CheckpointError
from gptx_models.checkpoints.sentencepiece_bpe import sentencepiece_tokenizer
from gptx_models.checkpoints.tokenizer_files import TokenizerFiles, companions, with_bos_eos
from gptx_models.importers.imported import Tell

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = (
    2,
    3,
    4,
    5,
    6,
)  # tokenizer.ggml.token_type; 1 is normal

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
    **dict.fromkeys(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "modern-bert", "mellum"),
        _PLAIN,
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _Pre((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "stablelm2", "megrez", "deepseek-r1-qwen"), _Pre((_QWEN2,))),
    "falcon": _Pre((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "tekken": _Pre((_TEKKEN,), ignore_merges=True, add_bos=True),
}


def read_tokenizer(metadata: dict[str, Any], where: str, *, tell: Tell) -> TokenizerFiles:
    """The tokenizer in a GGUF file's metadata. Raises CheckpointError."""
    fields = _Fields(metadata, where)
    kind = fields.get("model", str)
    if kind in (None, "no_vocab", "none"):
        return TokenizerFiles()
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(
            f"{where}: the tokenizer is of kind {kind!r}, and gptx reads gpt2 (byte-level BPE) and llama "
            "(SentencePiece): give a tokenizer.json with --tokenizer"
        )
    vocab = _Vocabulary.of(fields)
    ids = _ids(fields, vocab, tell)
    if kind == "llama":
        tokenizer, add_bos = _sentencepiece(fields, vocab, ids["unk"]), True
    else:
        tokenizer, add_bos = _byte_level(fields, vocab, tell)
    ends = _ends(ids, vocab)
    add_bos = fields.get("add_bos_token", bool, add_bos) and ids["bos"] is not None
    add_eos = fields.get("add_eos_token", bool, False) and ids["eos"] is not None
    tokenizer.add_special_tokens(
        _added(vocab, (CONTROL, UNKNOWN), also=_marks([ids["bos"], *ends], vocab))
    )
    tokenizer.add_tokens(_added(vocab, (USER_DEFINED,)))
    names = {name: vocab.tokens[token] for name, token in ids.items() if token is not None}
    with_bos_eos(
        tokenizer, names.get("bos") if add_bos else None, names.get("eos") if add_eos else None
    )
    files = companions(
        tokenizer,
        tokenizer_class="GPT2Tokenizer" if kind == "gpt2" else "LlamaTokenizer",
        special={name: names[name] for name in ("bos", "eos", "unk", "pad") if name in names},
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=fields.get("tokenizer.chat_template", str),
    )
    return TokenizerFiles(files, _generation(fields, vocab, ids, ends))


def read_ids(metadata: dict[str, Any], where: str, *, tell: Tell) -> dict[str, Any]:
    """What the file says of generation alone, where the tokenizer comes from another file. Raises CheckpointError."""
    fields = _Fields(metadata, where)
    tokens = fields.each("tokens", (str,), "texts")
    if not tokens:
        return {}
    vocab = _Vocabulary(tokens, [], [])
    ids = _ids(fields, vocab, tell)
    return _generation(fields, vocab, ids, _ends(ids, vocab))


def _generation(
    fields: _Fields, vocab: _Vocabulary, ids: dict[str, int | None], ends: list[int]
) -> dict[str, Any]:
    """The fields of generation_config.json. As in llama.cpp, ids of suppress_tokens beyond the vocabulary are passed
    over."""
    eos: int | list[int] | None = ends if len(ends) > 1 else (ends or [None])[0]
    suppressed = [
        token
        for token in fields.each("suppress_tokens", (int,), "token ids")
        if 0 <= token < len(vocab)
    ]
    found = {"bos_token_id": ids["bos"], "eos_token_id": eos, "pad_token_id": ids["pad"]}
    found["suppress_tokens"] = suppressed or None
    return {name: value for name, value in found.items() if value is not None}


_SPECIAL = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
    "eot": "eot_token_id",  # the end of a turn, where it is not eos
    "eom": "eom_token_id",
    "fim_pad": "fim_pad_token_id",
    "fim_rep": "fim_rep_token_id",
    "fim_sep": "fim_sep_token_id",
}
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unk": 0}  # where the file names none, as in llama.cpp
# llama.cpp's rule for what ends a text: tokens by their names, whatever the file's ids say
_END_NAMES = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
}  # fmt: skip
_FIM_NAMES = {  # and the marks of code models, each only where the file gives no id for it
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}


def _ends(ids: dict[str, int | None], vocab: _Vocabulary) -> list[int]:
    """The tokens that end a text, eos first: llama.cpp's special_eog_ids (src/llama-vocab.cpp)."""
    by_name = {token: token_id for token_id, token in enumerate(vocab.tokens)}
    ends = [ids[name] for name in ("eos", "eot", "eom")]
    for name, texts in _FIM_NAMES.items():
        ends.append(
            ids[name]
            if ids[name] is not None
            else next((by_name[t] for t in texts if t in by_name), None)
        )
    ends += [token_id for token, token_id in by_name.items() if token in _END_NAMES]
    found = {token: vocab.tokens[token] for token in ends if token is not None}
    texts = set(found.values())
    dropped: set[str] = set()
    if texts & {"<|call|>", "<|calls|>"} and texts & {"<|return|>", "<|flush|>"}:
        dropped.add("<|end|>")  # of gpt-oss and Solar: the end of a message, and not of the turn
    if "<|tool_response>" in texts:
        dropped.add("</s>")  # of Gemma 4
    return [token for token, text in found.items() if text not in dropped]


class _Fields:
    """The tokenizer's metadata, each value of the type that llama.cpp expects. Raises CheckpointError."""

    def __init__(self, metadata: dict[str, Any], where: str) -> None:
        self._metadata, self.where = metadata, where

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """tokenizer.ggml.NAME, or NAME itself where it has a dot."""
        key = name if "." in name else f"tokenizer.ggml.{name}"
        value = self._metadata.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CheckpointError(f"{self.where}: {key} is {value!r:.80}, expected {_KINDS[kind]}")
        return value

    def each(self, name: str, kinds: tuple[type, ...], what: str) -> list[Any]:
        """A list whose entries are of these types; empty where there is none."""
        values = self.get(name, list, [])
        wrong = next((value for value in values if not isinstance(value, kinds)), None)
        if wrong is not None:
            raise CheckpointError(
                f"{self.where}: tokenizer.ggml.{name} holds {wrong!r:.80}, expected {what}"
            )
        return values


_KINDS: dict[type, str] = {str: "a text", int: "a number", bool: "true or false", list: "a list"}


@dataclass
class _Vocabulary:
    tokens: list[str]
    types: list[int]
    scores: list[float]

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, fields: _Fields) -> _Vocabulary:
        where = fields.where
        tokens = fields.each("tokens", (str,), "texts")
        if not tokens:
            raise CheckpointError(
                f"{where}: tokenizer.ggml.tokens is missing: give a tokenizer.json with --tokenizer"
            )
        types = fields.each("token_type", (int,), "numbers") or [1] * len(tokens)
        scores = fields.each("scores", (int, float), "numbers") or [0.0] * len(tokens)
        if min(len(types), len(scores)) < len(tokens):
            raise CheckpointError(
                f"{where}: tokenizer.ggml has {len(tokens)} tokens, {len(types)} types and {len(scores)} scores"
            )
        end = len(tokens)
        while end and types[end - 1] == UNUSED:  # padding of the vocabulary, never to be sampled
            end -= 1
        tokens = [
            token or f"[EMPTY_{at}]" for at, token in enumerate(tokens[:end])
        ]  # llama.cpp's name for it
        twice = next((token for token, count in Counter(tokens).items() if count > 1), None)
        if twice is not None:
            raise CheckpointError(f"{where}: tokenizer.ggml.tokens has {twice!r:.80} twice")
        return cls(tokens, types[:end], scores[:end])


def _ids(fields: _Fields, vocab: _Vocabulary, tell: Tell) -> dict[str, int | None]:
    """The special tokens that the file names by their ids, and those that llama.cpp assumes."""
    ids = {name: _id(fields, key, vocab, tell) for name, key in _SPECIAL.items()}
    if fields.get("model", str) == "llama":
        ids |= {
            name: token
            for name, token in _SENTENCEPIECE_IDS.items()
            if ids[name] is None and token < len(vocab)
        }
    return ids


def _id(fields: _Fields, key: str, vocab: _Vocabulary, tell: Tell) -> int | None:
    """A special token's id; none where it is negative or beyond the vocabulary, as in llama.cpp."""
    value = fields.get(key, int)
    if value is None or 0 <= value < len(vocab):
        return value
    if 0 <= value < 2**32 - 1:  # which is -1 without its sign: none
        tell(
            f"{fields.where}: tokenizer.ggml.{key} is {value}, beyond the {len(vocab):,} tokens: left out"
        )
    return None


def _added(
    vocab: _Vocabulary, kinds: tuple[int, ...], *, also: Collection[int] = ()
) -> list[AddedToken]:
    """Tokens that are found in a text before it is cut: those of some types, and a few by their ids."""
    return [
        AddedToken(token, special=USER_DEFINED not in kinds, normalized=False)
        for token_id, (token, kind) in enumerate(zip(vocab.tokens, vocab.types))
        if kind in kinds or token_id in also
    ]


def _marks(ends: Iterable[int | None], vocab: _Vocabulary) -> set[int]:
    """Ends that are typed as normal tokens, as in old files. (Some files name "!" as padding: that stays a word.)"""
    return {
        token
        for token in ends
        if token is not None and re.fullmatch(r"_?<.+>|\[.+[\]\[]", vocab.tokens[token])
    }


def _byte_level(fields: _Fields, vocab: _Vocabulary, tell: Tell) -> tuple[Tokenizer, bool]:
    where, name = fields.where, fields.get("pre", str)
    if name is None:
        tell(
            f"{where} names no pre-tokenizer (tokenizer.ggml.pre): llama.cpp's default is used, as it would be there"
        )
        name = "default"
    if name not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"{where}: tokenizer.ggml.pre is {name!r}, and gptx knows {', '.join(sorted(PRE_TOKENIZERS))}: "
            "give the model's own tokenizer.json with --tokenizer"
        )
    pre = PRE_TOKENIZERS[name]
    merges = fields.each("merges", (str,), "pairs of texts")
    if not merges and fields.get("merges", list) is None:
        raise CheckpointError(
            f"{where}: tokenizer.ggml.merges is missing: give a tokenizer.json with --tokenizer"
        )
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
    return merge[:1] + left, right


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


def _sentencepiece(fields: _Fields, vocab: _Vocabulary, unknown: int | None) -> Tokenizer:
    normal = [kind not in (CONTROL, UNKNOWN, UNUSED, BYTE) for kind in vocab.types]
    return sentencepiece_tokenizer(
        vocab.tokens,
        vocab.scores,
        normal,
        unknown=None if unknown is None else vocab.tokens[unknown],
        space_prefix=fields.get("add_space_prefix", bool, True),
    )
