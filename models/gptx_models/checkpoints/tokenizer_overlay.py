"""What transformers 4.57 lays over a tokenizer.json, written into it.

In: a tokenizer and the files beside it (tokenizer_config.json, special_tokens_map.json, added_tokens.json). Out: a
tokenizer.json that needs none of them, and the special tokens by name. The steps are those of transformers'
PreTrainedTokenizerBase._from_pretrained and PreTrainedTokenizerFast.__init__, with the settings of its classes.

Where the files contradict each other: a tokenizer_config.json with added_tokens_decoder stands alone; without it,
special_tokens_map.json goes before tokenizer_config.json, and added_tokens.json is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors

from gptx.errors import CheckpointError
from gptx.text.tokenizer import ADDITIONAL, SPECIAL

Tell = Callable[[str], None]


@dataclass(frozen=True)
class TokenizerClass:
    """A class of transformers: the tokens that it has where the files name none, and what it does besides."""

    tokens: Mapping[str, str] = field(default_factory=dict)
    additional: tuple[str, ...] = ()
    adds_bos: bool | None = (
        None  # what add_bos_token is where it is not given; None: the class does not read it
    )
    bert: bool = (
        False  # do_lower_case, strip_accents and tokenize_chinese_chars change its normalizer
    )


def _tokens(
    bos: str | None, eos: str | None, unk: str | None, pad: str | None = None
) -> dict[str, str]:
    named = {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad}
    return {role: token for role, token in named.items() if token is not None}


_END = "<|endoftext|>"
_FILL = ("▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>")
_BERT = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
_ROBERTA = {
    **_tokens("<s>", "</s>", "<unk>", "<pad>"),
    "sep_token": "</s>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
CLASSES: dict[str, TokenizerClass] = {
    "LlamaTokenizer": TokenizerClass(_tokens("<s>", "</s>", "<unk>"), adds_bos=True),
    "CodeLlamaTokenizer": TokenizerClass(_tokens("<s>", "</s>", "<unk>"), _FILL, adds_bos=True),
    "GemmaTokenizer": TokenizerClass(_tokens("<bos>", "<eos>", "<unk>", "<pad>"), adds_bos=True),
    "CohereTokenizer": TokenizerClass(
        _tokens("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<UNK>"), adds_bos=True
    ),
    "GPTNeoXTokenizer": TokenizerClass(_tokens(_END, _END, _END), adds_bos=False),
    "GPT2Tokenizer": TokenizerClass(_tokens(_END, _END, _END)),
    "CodeGenTokenizer": TokenizerClass(_tokens(_END, _END, _END)),
    "Qwen2Tokenizer": TokenizerClass(_tokens(None, _END, _END, _END)),
    "BloomTokenizer": TokenizerClass(_tokens("<s>", "</s>", "<unk>", "<pad>")),
    "OpenAIGPTTokenizer": TokenizerClass(_tokens(None, None, "<unk>")),
    "WhisperTokenizer": TokenizerClass(_tokens(_END, _END, _END)),
    **dict.fromkeys(
        ("RobertaTokenizer", "BartTokenizer", "XLMRobertaTokenizer"), TokenizerClass(_ROBERTA)
    ),
    **dict.fromkeys(
        ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"),
        TokenizerClass(_BERT, bert=True),
    ),
}
PLAIN = (
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)  # no settings of their own; the latter is of transformers 5
OF_MODEL = {  # the class that transformers takes where no file names one
    "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "openai-gpt": "OpenAIGPTTokenizer",
}


@dataclass
class Beside:
    """The files beside a tokenizer, parsed; `where` names their folder in messages."""

    where: str
    config: dict[str, Any] = field(default_factory=dict)  # tokenizer_config.json
    merges: bool = False  # the tokenizer comes from vocab.json and merges.txt: GPT-2's class obeys add_bos_token then
    special: dict[str, Any] = field(default_factory=dict)  # special_tokens_map.json
    added: dict[str, Any] = field(default_factory=dict)  # added_tokens.json: text -> id
    model: dict[str, Any] = field(default_factory=dict)  # config.json of the model


@dataclass
class Laid:
    """What came of it: tokenizer.json's text, the special tokens by role, and the class with its own settings."""

    text: str
    special: dict[str, Any]
    class_name: str | None
    settings: dict[str, Any] = field(
        default_factory=dict
    )  # of the class: add_bos_token, add_eos_token


def lay_over(
    text: str, tokenizer: Tokenizer, beside: Beside, vocab_size: int | None, tell: Tell
) -> Laid:
    """Lay the files in `beside` over a tokenizer. `text` is its tokenizer.json, and `tokenizer` the same, opened, which
    is changed. Raises CheckpointError.

    Added tokens from `vocab_size` on are left out with a line: the model has no rows for them.
    """
    name = _class_of(tokenizer, beside)
    kind = CLASSES.get(name or "", TokenizerClass())
    before = _parts(tokenizer)
    named, added = _named(tokenizer, beside, kind)
    _add(tokenizer, named, added, beside.where)
    _set_prefix_space(tokenizer, beside.config, llama=name == "LlamaTokenizer")
    if kind.bert:
        _set_bert(tokenizer, beside.config)
    beyond = _beyond(tokenizer, vocab_size)
    for token in beyond.values():
        tell(
            f"{beside.where}: the added token {token!r} is beyond the model's {vocab_size:,} tokens: left out"
        )
    special = _texts(named, set(beyond.values()))
    settings: dict[str, Any] = {}
    if kind.adds_bos is not None:
        settings = {
            "add_bos_token": bool(beside.config.get("add_bos_token", kind.adds_bos)),
            "add_eos_token": bool(beside.config.get("add_eos_token", False)),
        }
        _set_ends(tokenizer, special, **settings)
    elif (
        beside.merges
        and beside.config.get("add_bos_token")
        and name in ("GPT2Tokenizer", "CodeGenTokenizer")
    ):
        _set_ends(tokenizer, special, add_bos_token=True, add_eos_token=False)
    raw = json.loads(text)
    made = {
        **raw,
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokenizer, raw, beyond),
    }
    made |= {part: state for part, state in _parts(tokenizer).items() if state != before[part]}
    if made != {"truncation": None, "padding": None, "added_tokens": [], **raw}:
        text = json.dumps(made, ensure_ascii=False, separators=(",", ":"))
    return Laid(text, special, name, settings)


def class_name(beside: Beside) -> str | None:
    """The class that the files name, else the one of the model's type."""
    for fields in (beside.config, beside.model):
        name = fields.get("tokenizer_class")
        if isinstance(name, str) and name:
            return name.removesuffix("Fast") if name not in PLAIN else PLAIN[0]
    return OF_MODEL.get(str(beside.model.get("model_type")))


def _class_of(tokenizer: Tokenizer, beside: Beside) -> str | None:
    """The class that is named, or that of the model's type where the tokenizer has that class's tokens. (transformers
    adds those tokens behind the others, where the model mostly has no rows for them.)"""
    name = class_name(beside)
    named = any(
        isinstance(fields.get("tokenizer_class"), str) for fields in (beside.config, beside.model)
    )
    usual = CLASSES[name].tokens.values() if name in CLASSES else ()
    return (
        name if named or all(tokenizer.token_to_id(token) is not None for token in usual) else None
    )


def _named(
    tokenizer: Tokenizer, beside: Beside, kind: TokenizerClass
) -> tuple[dict[str, Any], dict[int, AddedToken]]:
    """(the special tokens by role, the tokens to be added by their ids), as the files give them."""
    config, where = beside.config, f"{beside.where}/tokenizer_config.json"
    named: dict[str, Any] = dict(kind.tokens)
    if padding := tokenizer.padding:
        named.setdefault("pad_token", padding["pad_token"])
    named |= {role: _token(config[role], f"{where}: {role}") for role in SPECIAL if role in config}
    extra = config.get("extra_special_tokens")
    for role, value in extra.items() if isinstance(extra, dict) else ():
        named[role] = _token(value, f"{where}: extra_special_tokens[{role!r}]")
    named[ADDITIONAL] = _additional(config, where)
    if config.get("added_tokens_decoder") is not None:
        added = _decoder(config["added_tokens_decoder"], f"{where}: added_tokens_decoder")
    else:
        where = f"{beside.where}/special_tokens_map.json"
        for role in SPECIAL:
            if role in beside.special:
                named[role] = _token(beside.special[role], f"{where}: {role}")
        more = [
            token
            for token in _additional(beside.special, where)
            if str(token) not in map(str, named[ADDITIONAL])
        ]
        named[ADDITIONAL] = [*named[ADDITIONAL], *more]
        texts = {str(token) for token in _all(named)}
        added = _legacy(beside.added, texts, f"{beside.where}/added_tokens.json")
        added |= tokenizer.get_added_tokens_decoder()
    named[ADDITIONAL] = [*named[ADDITIONAL], *kind.additional]
    by_text = {token.content: token for token in added.values()}
    return {
        role: value if role == ADDITIONAL else by_text.get(str(value), value)
        for role, value in named.items()
        if value is not None
    }, added


def _token(value: Any, what: str) -> str | AddedToken | None:
    """A token as the files write it: its text, or an object with its flags."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {name: value[name] for name in _FLAGS if isinstance(value.get(name), bool)}
        return AddedToken(value["content"], **flags)
    raise CheckpointError(f"{what} is {value!r:.80}, expected a token's text")


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _additional(fields: Mapping[str, Any], where: str) -> list[Any]:
    """additional_special_tokens, and extra_special_tokens where it is a list, as transformers 5 writes them."""
    found: list[Any] = []
    for name in (ADDITIONAL, "extra_special_tokens"):
        values = fields.get(name)
        if isinstance(values, dict):
            continue
        if values is not None and not isinstance(values, list):
            raise CheckpointError(f"{where}: {name} is {values!r:.80}, expected a list of tokens")
        found += [_token(value, f"{where}: {name}") for value in values or []]
    return [token for token in found if token is not None]


def _decoder(values: Any, what: str) -> dict[int, AddedToken]:
    if not isinstance(values, dict):
        raise CheckpointError(f"{what} is {values!r:.80}, expected tokens by their ids")
    added = {}
    for key, value in values.items():
        token = _token(value, f"{what}[{key!r}]")
        if not isinstance(token, AddedToken) or not key.isdecimal():
            raise CheckpointError(
                f"{what}[{key!r}] is {value!r:.80}, expected a token under its id"
            )
        added[int(key)] = token
    return added


def _legacy(values: Mapping[str, Any], special: set[str], what: str) -> dict[int, AddedToken]:
    added = {}
    for token, token_id in values.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise CheckpointError(
                f"{what} gives {token!r:.80} the id {token_id!r:.80}, expected a number"
            )
        added[token_id] = AddedToken(
            token, normalized=token not in special, special=token in special
        )
    return added


def _all(named: Mapping[str, Any]) -> list[Any]:
    """The special tokens in transformers' order, each at its first place."""
    values = [named[role] for role in SPECIAL if named.get(role)] + list(named.get(ADDITIONAL, ()))
    values += [token for role, token in named.items() if role not in (*SPECIAL, ADDITIONAL)]
    found: dict[str, Any] = {}
    for token in values:
        found.setdefault(str(token), token)
    return list(found.values())


def _add(
    tokenizer: Tokenizer, named: Mapping[str, Any], added: Mapping[int, AddedToken], where: str
) -> None:
    """Add what the tokenizer has not, or has with other flags. The tokenizer gives the ids: a token that it knows keeps
    its own, a new one is put behind the last. Raises CheckpointError where a file says another id."""
    there = tokenizer.get_added_tokens_decoder().values()
    known = {repr(token) for token in there}
    new: list[Any] = [token for _, token in sorted(added.items()) if repr(token) not in known]
    texts = {token.content for token in there} | {str(token) for token in new}
    # a token that is given with flags replaces the one that is there, as in transformers
    new += [token for token in _all(named) if isinstance(token, AddedToken) or token not in texts]
    special = {str(token) for token in _all(named)}
    flagged = []
    for token in new:
        is_special = str(token) in special or (isinstance(token, AddedToken) and token.special)
        if isinstance(token, str):
            token = AddedToken(token, special=is_special)
        token.special = is_special
        flagged.append(token)
    tokenizer.add_tokens(flagged)
    for token_id, token in added.items():
        given = tokenizer.token_to_id(token.content)
        if given is not None and given != token_id:
            raise CheckpointError(
                f"{where}: the added token {token.content!r} has the id {token_id} in one file and {given} in another, "
                "or ids are left out before it: the tokenizer's files do not belong together"
            )


def _set_prefix_space(tokenizer: Tokenizer, config: Mapping[str, Any], *, llama: bool) -> None:
    """add_prefix_space, in a pre-tokenizer that has the setting itself (ByteLevel, not a sequence with one in it).

    A LlamaTokenizer reads it only where it is given; then it makes the parts around the vocabulary anew, by `legacy`.
    """
    wanted = config.get("add_prefix_space", None if llama else False)
    if not isinstance(wanted, bool):
        return
    if llama and _is_metaspace(tokenizer):
        set_llama_parts(
            tokenizer, add_prefix_space=wanted, legacy=config.get("legacy") in (None, True)
        )
    elif prefix_space(tokenizer) not in (None, wanted):
        state = json.loads(tokenizer.pre_tokenizer.__getstate__())  # type: ignore[union-attr]
        kind = getattr(pre_tokenizers, state.pop("type"))
        tokenizer.pre_tokenizer = kind(**{**state, "add_prefix_space": wanted})


def prefix_space(tokenizer: Tokenizer) -> bool | None:
    """A pre-tokenizer's own add_prefix_space; None where it has no such setting."""
    state = (
        json.loads(tokenizer.pre_tokenizer.__getstate__())
        if tokenizer.pre_tokenizer is not None
        else {}
    )
    return state.get("add_prefix_space")


def _is_metaspace(tokenizer: Tokenizer) -> bool:
    """Whether a space is written as SentencePiece writes it."""
    parts = _parts(tokenizer)
    return any(
        "\u2581" in json.dumps(parts[name], ensure_ascii=False)
        for name in ("normalizer", "pre_tokenizer")
    )


def set_llama_parts(tokenizer: Tokenizer, *, add_prefix_space: bool, legacy: bool) -> None:
    """The parts that transformers' LlamaConverter puts around a SentencePiece vocabulary."""
    if legacy:
        before = [normalizers.Prepend("▁")] if add_prefix_space else []
        tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    else:
        scheme = "first" if add_prefix_space else "never"
        tokenizer.normalizer = None  # type: ignore[assignment]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    parts: list[decoders.Decoder] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    tokenizer.decoder = decoders.Sequence(
        [*parts, decoders.Strip(" ", 1, 0)] if add_prefix_space else parts
    )


def _set_bert(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    if tokenizer.normalizer is None:
        return
    state = json.loads(tokenizer.normalizer.__getstate__())
    wanted = {
        "lowercase": config.get("do_lower_case", True),
        "strip_accents": config.get("strip_accents"),
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
    }
    if state.get("type") == "BertNormalizer" and any(
        state[name] != value for name, value in wanted.items()
    ):
        tokenizer.normalizer = normalizers.BertNormalizer(clean_text=state["clean_text"], **wanted)


def _set_ends(
    tokenizer: Tokenizer, special: Mapping[str, Any], *, add_bos_token: bool, add_eos_token: bool
) -> None:
    bos = special.get("bos_token") if add_bos_token else None
    eos = special.get("eos_token") if add_eos_token else None
    tokenizer.post_processor = bos_eos_processor(tokenizer, bos, eos)


def bos_eos_processor(
    tokenizer: Tokenizer, bos: str | None, eos: str | None
) -> processors.TemplateProcessing:
    """Puts these tokens before and after a text; None: no token there."""
    single = [part for part in (bos, "$A", eos) if part is not None]
    second = [part.replace("$A", "$B") + ":1" for part in single]
    tokens = [
        (token, tokenizer.token_to_id(token))
        for token in dict.fromkeys((bos, eos))
        if token is not None
    ]
    return processors.TemplateProcessing(
        single=single, pair=[*single, *second], special_tokens=tokens
    )


def _beyond(tokenizer: Tokenizer, vocab_size: int | None) -> dict[int, str]:
    if vocab_size is None:
        return {}
    base = tokenizer.get_vocab_size(with_added_tokens=False)
    added = tokenizer.get_added_tokens_decoder().items()
    return {i: token.content for i, token in added if i >= vocab_size and i >= base}


def _texts(named: Mapping[str, Any], without: set[str]) -> dict[str, Any]:
    """The special tokens as texts, but for those that were left out."""
    roles = [*SPECIAL, *(role for role in named if role not in (*SPECIAL, ADDITIONAL))]
    texts: dict[str, Any] = {role: str(named[role]) for role in roles if named.get(role)}
    texts = {role: text for role, text in texts.items() if text not in without}
    more = list(
        dict.fromkeys(
            str(token) for token in named.get(ADDITIONAL, ()) if str(token) not in without
        )
    )
    return {**texts, **({ADDITIONAL: more} if more else {})}


def _added_tokens(
    tokenizer: Tokenizer, raw: Mapping[str, Any], beyond: Mapping[int, str]
) -> list[dict[str, Any]]:
    """added_tokens of tokenizer.json; those of the file where nothing has changed, in its order."""
    made = [
        {"id": i, "content": token.content, **{flag: getattr(token, flag) for flag in _FLAGS}}
        for i, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if i not in beyond
    ]
    theirs = raw.get("added_tokens") or []
    return theirs if sorted(theirs, key=lambda token: token["id"]) == made else made


_PARTS: dict[str, Any] = {
    "normalizer": normalizers, "pre_tokenizer": pre_tokenizers, "post_processor": processors, "decoder": decoders,
}  # fmt: skip


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """The parts of tokenizer.json around the model, as it writes them. (Writing the model too prints a line on
    standard output where the vocabulary has a hole, and takes gigabytes where an id is huge.)"""
    parts = {name: getattr(tokenizer, name) for name in _PARTS}
    return {
        name: None if part is None else json.loads(part.__getstate__())
        for name, part in parts.items()
    }
