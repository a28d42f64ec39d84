"""llama.cpp's pre-tokenizers, by the names that tokenizer.ggml.pre gives them.

A pre-tokenizer cuts a text into words before byte-level BPE. The patterns cut a text as those in
llama.cpp's src/llama-vocab.cpp do, in the syntax of the `tokenizers` package. One pattern differs:
Tekken's is the one in the model's own tokenizer.json, because llama.cpp's version does not know
combining marks.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CASELESS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CASELESS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_TEKKEN = rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class GgufPreTokenizer:
    """The settings of one of llama.cpp's pre-tokenizers.

    patterns: regular expressions that cut a text, applied one after another. ignore_merges: a word
    that is in the vocabulary becomes one token, even if the merges do not lead to it. add_bos: the
    default of tokenizer.ggml.add_bos_token.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The pre-tokenizer of the `tokenizers` package.

        GPT-2's pattern is part of ByteLevel, which every loader knows; other patterns are written
        out as Split steps.
        """
        *before, last = self.patterns
        built_in = last == _GPT2
        if before == [r"\p{N}"] and built_in:
            steps: list[pre_tokenizers.PreTokenizer] = [
                pre_tokenizers.Digits(individual_digits=True)
            ]
        else:
            patterns = before if built_in else self.patterns
            steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=built_in))
        return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


_PLAIN = GgufPreTokenizer((_GPT2,))
_SINGLE_DIGITS = GgufPreTokenizer((r"\p{N}", _GPT2))
_LLAMA_BPE = GgufPreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
PRE_TOKENIZERS: dict[str, GgufPreTokenizer] = {
    "default": GgufPreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "modern-bert", "mellum"),
        _PLAIN,
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        _SINGLE_DIGITS,
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA_BPE
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), GgufPreTokenizer((_LLAMA3,))),
    **dict.fromkeys(
        ("qwen2", "stablelm2", "megrez", "deepseek-r1-qwen"), GgufPreTokenizer((_QWEN2,))
    ),
    "falcon": GgufPreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "tekken": GgufPreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
}
