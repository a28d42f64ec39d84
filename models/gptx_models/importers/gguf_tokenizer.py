"""A GGUF file's tokenizer.ggml.* metadata -> the files of a tokenizer.

Two kinds are read: `gpt2`, byte-level BPE with merges, whose pre-tokenizer is named in
tokenizer.ggml.pre; `llama`, SentencePiece's BPE with scores. A text gets the same token ids as in
llama.cpp; tests compare them. An unknown pre-tokenizer is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models

from gptx.errors import CheckpointError
from gptx_models.checkpoints.sentencepiece_bpe import sentencepiece_tokenizer
from gptx_models.checkpoints.tokenizer_files import TokenizerFiles
from gptx_models.checkpoints.tokenizer_parts import set_bos_eos
from gptx_models.checkpoints.write_tokenizer import new_tokenizer_files
from gptx_models.importers.gguf_end_tokens import end_tokens
from gptx_models.importers.gguf_pre_tokenizers import PRE_TOKENIZERS
from gptx_models.importers.gguf_vocabulary import (
    BYTE,
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    GgufVocabulary,
    TokenizerMetadata,
    read_special_ids,
    read_vocabulary,
)
from gptx_models.importers.imported import Tell

_NO_TOKENIZER = (None, "no_vocab", "none")


def read_tokenizer(metadata: dict[str, Any], where: str, *, tell: Tell) -> TokenizerFiles:
    """The tokenizer in a GGUF file's metadata; empty if there is none.

    `where` names the file in messages. `tell` is called with a line for what is assumed or left
    out. Raises CheckpointError.
    """
    fields = TokenizerMetadata(metadata, where)
    kind = fields.get("model", str)
    if kind in _NO_TOKENIZER:
        return TokenizerFiles()
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(
            f"{where}: the tokenizer is of kind {kind!r}, and gptx reads gpt2 (byte-level BPE) and"
            " llama (SentencePiece): give a tokenizer.json with --tokenizer"
        )
    vocab = read_vocabulary(fields)
    ids = read_special_ids(fields, vocab, tell)
    if kind == "llama":
        tokenizer, adds_bos = _sentencepiece(fields, vocab, ids["unk"]), True
    else:
        tokenizer, adds_bos = _byte_level(fields, vocab, tell)
    ends = end_tokens(ids, vocab)
    _add_tokens(tokenizer, vocab, [ids["bos"], *ends])
    special = {name: vocab.tokens[token] for name, token in ids.items() if token is not None}
    bos = special.get("bos") if fields.get("add_bos_token", bool, adds_bos) else None
    eos = special.get("eos") if fields.get("add_eos_token", bool, False) else None
    if bos is not None or eos is not None:
        set_bos_eos(tokenizer, bos, eos)
    files = new_tokenizer_files(
        tokenizer,
        tokenizer_class="GPT2Tokenizer" if kind == "gpt2" else "LlamaTokenizer",
        special={name: special[name] for name in ("bos", "eos", "unk", "pad") if name in special},
        add_bos=bos is not None,
        add_eos=eos is not None,
        chat_template=fields.get("tokenizer.chat_template", str),
    )
    return TokenizerFiles(files, _generation(fields, vocab, ids, ends))


def read_generation(metadata: dict[str, Any], where: str, *, tell: Tell) -> dict[str, Any]:
    """The fields of generation_config.json alone, for a tokenizer that comes from another file.

    Raises CheckpointError.
    """
    fields = TokenizerMetadata(metadata, where)
    tokens = fields.get_list("tokens", (str,), "texts")
    if not tokens:
        return {}
    vocab = GgufVocabulary(tokens, [], [])
    ids = read_special_ids(fields, vocab, tell)
    return _generation(fields, vocab, ids, end_tokens(ids, vocab))


def _generation(
    fields: TokenizerMetadata, vocab: GgufVocabulary, ids: dict[str, int | None], ends: list[int]
) -> dict[str, Any]:
    """The fields of generation_config.json.

    Ids of suppress_tokens beyond the vocabulary are ignored, as in llama.cpp.
    """
    eos: int | list[int] | None = ends if len(ends) > 1 else (ends or [None])[0]
    suppressed = [
        token
        for token in fields.get_list("suppress_tokens", (int,), "token ids")
        if 0 <= token < len(vocab)
    ]
    found = {
        "bos_token_id": ids["bos"],
        "eos_token_id": eos,
        "pad_token_id": ids["pad"],
        "suppress_tokens": suppressed or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _sentencepiece(
    fields: TokenizerMetadata, vocab: GgufVocabulary, unknown: int | None
) -> Tokenizer:
    return sentencepiece_tokenizer(
        vocab.tokens,
        vocab.scores,
        [kind not in (CONTROL, UNKNOWN, UNUSED, BYTE) for kind in vocab.types],
        unknown=None if unknown is None else vocab.tokens[unknown],
        space_prefix=fields.get("add_space_prefix", bool, True),
    )


def _byte_level(
    fields: TokenizerMetadata, vocab: GgufVocabulary, tell: Tell
) -> tuple[Tokenizer, bool]:
    """(the tokenizer, whether it adds a bos token by default)."""
    where, name = fields.where, fields.get("pre", str)
    if name is None:
        tell(
            f"{where} names no pre-tokenizer (tokenizer.ggml.pre): llama.cpp's default is used, as"
            " it would be there"
        )
        name = "default"
    if name not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"{where}: tokenizer.ggml.pre is {name!r}, and gptx knows"
            f" {', '.join(sorted(PRE_TOKENIZERS))}: give the model's own tokenizer.json with"
            " --tokenizer"
        )
    pre_tokenizer = PRE_TOKENIZERS[name]
    ids = {token: token_id for token_id, token in enumerate(vocab.tokens)}
    merges = _merges(fields)
    try:
        model = models.BPE(ids, merges, ignore_merges=pre_tokenizer.ignore_merges)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{where}: the merges do not fit the vocabulary: {error}") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre_tokenizer.add_bos


def _merges(fields: TokenizerMetadata) -> list[tuple[str, str]]:
    """The merges of byte-level BPE. The list may be empty, but a missing list is an error."""
    merges = fields.get_list("merges", (str,), "pairs of texts")
    if not merges and fields.get("merges", list) is None:
        raise CheckpointError(
            f"{fields.where}: tokenizer.ggml.merges is missing: give a tokenizer.json with"
            " --tokenizer"
        )
    return [_pair(merge) for merge in merges]


def _pair(merge: str) -> tuple[str, str]:
    """The two parts of a merge, "left right". The left part may itself begin with a space."""
    left, _, right = merge[1:].partition(" ")
    return merge[:1] + left, right


def _add_tokens(tokenizer: Tokenizer, vocab: GgufVocabulary, marks: Iterable[int | None]) -> None:
    """Add special and user-defined tokens, which are matched before a text is cut into words.

    marks: ids of the tokens that begin, end or pad a text. Old files give these tokens the type of
    normal ones, so they are made special if their text looks like a mark, such as "<s>". (The
    padding token of some files is the word "!", which must stay a normal token.)
    """
    looks_like_mark = re.compile(r"_?<.+>|\[.+[\]\[]")
    also = {
        token
        for token in marks
        if token is not None and looks_like_mark.fullmatch(vocab.tokens[token])
    }
    tokenizer.add_special_tokens(_added(vocab, (CONTROL, UNKNOWN), also=also, special=True))
    tokenizer.add_tokens(_added(vocab, (USER_DEFINED,), also=(), special=False))


def _added(
    vocab: GgufVocabulary, kinds: tuple[int, ...], *, also: Collection[int], special: bool
) -> list[AddedToken]:
    """The tokens of these types, and those with the ids in `also`."""
    return [
        AddedToken(token, special=special, normalized=False)
        for token_id, (token, kind) in enumerate(zip(vocab.tokens, vocab.types))
        if kind in kinds or token_id in also
    ]
