"""The parts of a tokenizer around its model: normalizer, pre-tokenizer, post-processor, decoder.

The functions that set a part do it as transformers' tokenizer classes do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def parts_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The parts by name, as tokenizer.json writes them; None for a part that is not there.

    Each part is written on its own. Tokenizer.to_str would write the model too: with a hole in the
    vocabulary it prints a line on standard output, and with a huge id it takes gigabytes.
    """
    return {name: _state(getattr(tokenizer, name)) for name in _PARTS}


def _state(part: Any) -> dict[str, Any] | None:
    return None if part is None else json.loads(part.__getstate__())


def prefix_space(tokenizer: Tokenizer) -> bool | None:
    """add_prefix_space of the pre-tokenizer; None if it has no such setting.

    Pre-tokenizers inside a Sequence are ignored: transformers does not change those either.
    """
    return (_state(tokenizer.pre_tokenizer) or {}).get("add_prefix_space")


def set_prefix_space(tokenizer: Tokenizer, config: Mapping[str, Any], *, is_llama: bool) -> None:
    """Apply add_prefix_space of tokenizer_config.json, as transformers does.

    is_llama: the class is LlamaTokenizer. Then an absent setting changes nothing, and a given one
    replaces normalizer, pre-tokenizer and decoder of a tokenizer that writes spaces as "▁"; the
    setting `legacy` selects their form. Otherwise only the pre-tokenizer changes, and an absent
    setting means false.
    """
    wanted = config.get("add_prefix_space", None if is_llama else False)
    if not isinstance(wanted, bool):
        return
    if is_llama and _is_metaspace(tokenizer):
        set_llama_parts(
            tokenizer, add_prefix_space=wanted, legacy=config.get("legacy") in (None, True)
        )
    elif prefix_space(tokenizer) not in (None, wanted):
        state = _state(tokenizer.pre_tokenizer) or {}
        make = getattr(pre_tokenizers, state.pop("type"))
        tokenizer.pre_tokenizer = make(**{**state, "add_prefix_space": wanted})


def _is_metaspace(tokenizer: Tokenizer) -> bool:
    """True if the tokenizer writes a space as SentencePiece does: ▁ (U+2581)."""
    parts = (_state(tokenizer.normalizer), _state(tokenizer.pre_tokenizer))
    return any("\u2581" in json.dumps(part, ensure_ascii=False) for part in parts)


def set_llama_parts(tokenizer: Tokenizer, *, add_prefix_space: bool, legacy: bool) -> None:
    """Set the parts that transformers' LlamaConverter puts around a SentencePiece vocabulary.

    add_prefix_space: put a space before the text. legacy: true if the normalizer puts it, so every
    stretch of text between special tokens gets one; false if the pre-tokenizer puts it, so only the
    first stretch gets one.
    """
    if legacy:
        prepend = [normalizers.Prepend("▁")] if add_prefix_space else []
        tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    else:
        scheme = "first" if add_prefix_space else "never"
        tokenizer.normalizer = None  # type: ignore[assignment]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    tokenizer.decoder = sentencepiece_decoder(strip_space=add_prefix_space)


def sentencepiece_decoder(*, strip_space: bool) -> decoders.Decoder:
    """Turns ▁ into a space and byte tokens into characters.

    strip_space: also takes away the space that encoding puts before a text.
    """
    steps: list[decoders.Decoder] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip_space else steps)


def set_bert_normalizer(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Apply do_lower_case, strip_accents and tokenize_chinese_chars to a BertNormalizer."""
    state = _state(tokenizer.normalizer) or {}
    wanted = {
        "lowercase": config.get("do_lower_case", True),
        "strip_accents": config.get("strip_accents"),
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
    }
    if state.get("type") == "BertNormalizer" and any(
        state[name] != value for name, value in wanted.items()
    ):
        tokenizer.normalizer = normalizers.BertNormalizer(clean_text=state["clean_text"], **wanted)


def set_bos_eos(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Make the tokenizer put `bos` before each text and `eos` behind it. None: no token there."""
    single = [part for part in (bos, "$A", eos) if part is not None]
    second = [part.replace("$A", "$B") + ":1" for part in single]
    tokens = [
        (token, tokenizer.token_to_id(token))
        for token in dict.fromkeys((bos, eos))
        if token is not None
    ]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=[*single, *second], special_tokens=tokens
    )
