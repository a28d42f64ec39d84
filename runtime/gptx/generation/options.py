"""The options of text generation, each written once: its default, its check and its help text.

The keywords of Model.generate, the options of `gptx run`, the checks of `resolve` and the table in
the documentation are all made from the fields of `Options`. A new option needs one field there, and
its name in `Given` (option_keywords.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from gptx.generation.generation_rules import NO_RULES, Rules
from gptx.generation.option_kinds import (
    BREAKERS,
    EARLY_STOPPING,
    LARGEST_FLOAT,
    LENGTH_DECAY,
    LOGIT_BIAS,
    SEQUENCE_BIAS,
    SEQUENCES,
    SMALLEST_FLOAT,
    TEXTS,
    TOKEN_ID,
    TOKEN_IDS,
    TOKEN_IDS_OR_ONE,
    Biases,
    Kind,
    TokenIds,
    number,
    whole_number,
)

# The limit of Model.generate, Model.stream and gptx run, unless the call or generation_config.json
# sets one. It is the default of mlx-lm, too.
MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class OptionSpec:
    """How an option is checked, explained and spelled on the command line.

    kind: the type of its values, and the allowed range.
    help: one sentence for `gptx run --help` and the documentation.
    metavar: the placeholder for its value in `gptx run --help`.
    letter: its short flag, for instance "-n".
    sampling_only: the option has no effect in greedy decoding.
    on_command_line: False for options that only Python has.
    """

    kind: Kind
    help: str
    metavar: str
    letter: str | None = None
    sampling_only: bool = False
    on_command_line: bool = True


def _option(default: Any, kind: Kind, help: str, metavar: str, **more: Any) -> Any:
    return field(default=default, metadata={"option": OptionSpec(kind, help, metavar, **more)})


@dataclass(frozen=True)
class Options:
    """The checked options of one call of generate or stream.

    The defaults decode greedily until the model ends the text or its context is full.
    """

    max_new_tokens: int | None = _option(
        None,
        whole_number("1 or more", lowest=1),
        "Stop after N new tokens.",
        "N",
        letter="-n",
    )
    min_new_tokens: int = _option(
        0,
        whole_number("0 or more", lowest=0),
        "Generate at least N tokens before the model may end the text.",
        "N",
    )
    temperature: float = _option(
        0.0,
        number("0 (greedy) or more", lowest=0, highest=LARGEST_FLOAT),
        "0: always take the likeliest token. Above 0: draw at random; higher is more varied.",
        "T",
    )
    top_k: int = _option(
        0,
        whole_number("0 (off) or more", lowest=0),
        "Draw only from the K likeliest tokens (0: from all).",
        "K",
        sampling_only=True,
    )
    top_p: float = _option(
        1.0,
        number("0 to 1", lowest=0, highest=1),
        "Draw only from the likeliest tokens whose probabilities add up to P (1: from all).",
        "P",
        sampling_only=True,
    )
    min_p: float = _option(
        0.0,
        number("0 to 1", lowest=0, highest=1),
        "Leave out tokens less likely than P times the likeliest (0: none).",
        "P",
        sampling_only=True,
    )
    typical_p: float = _option(
        1.0,
        number("over 0, at most 1", lowest=SMALLEST_FLOAT, highest=1),
        "Draw only from the tokens nearest to the expected surprise, of probability P together"
        " (1: from all).",
        "P",
        sampling_only=True,
    )
    epsilon_cutoff: float = _option(
        0.0,
        number("0 (off) to below 1", lowest=0, highest=math.nextafter(1, 0)),
        "Leave out tokens with a probability below P (0: none).",
        "P",
        sampling_only=True,
    )
    eta_cutoff: float = _option(
        0.0,
        number("0 (off) to below 1", lowest=0, highest=math.nextafter(1, 0)),
        "As --epsilon-cutoff, but lower where many tokens are likely (0: off).",
        "P",
        sampling_only=True,
    )
    top_h: float = _option(
        0.0,
        number("0 (off) to 1", lowest=0, highest=1),
        "Draw only from the likeliest tokens that hold the share H of the entropy of the 100"
        " likeliest (0: off).",
        "H",
        sampling_only=True,
    )
    top_n_sigma: float = _option(
        0.0,
        number("0 (off) or more", lowest=0, highest=LARGEST_FLOAT),
        "Leave out tokens whose logit is more than N standard deviations below the highest"
        " (0: none).",
        "N",
        sampling_only=True,
    )
    xtc_probability: float = _option(
        0.0,
        number("0 (off) to 1", lowest=0, highest=1),
        "With this probability, exclude the top choices (XTC): all tokens of at least"
        " --xtc-threshold but the least likely of them.",
        "P",
        sampling_only=True,
    )
    xtc_threshold: float = _option(
        0.1,
        number("0 to 1 (above 0.5 is off)", lowest=0, highest=1),
        "The least probability of a top choice (see --xtc-probability).",
        "P",
        sampling_only=True,
    )
    repetition_penalty: float = _option(
        1.0,
        number("over 0 (1 is none)", lowest=SMALLEST_FLOAT, highest=LARGEST_FLOAT),
        "Above 1: make tokens that occurred before less likely (1: off).",
        "R",
    )
    presence_penalty: float = _option(
        0.0,
        number("-2 to 2", lowest=-2, highest=2),
        "Lower the logits of tokens that were generated before by this number (0: off).",
        "X",
    )
    frequency_penalty: float = _option(
        0.0,
        number("-2 to 2", lowest=-2, highest=2),
        "Lower the logits of tokens by this number for each time they were generated (0: off).",
        "X",
    )
    no_repeat_ngram_size: int = _option(
        0,
        whole_number("0 (off) or more", lowest=0),
        "Never repeat a sequence of N tokens of prompt and text (0: off).",
        "N",
    )
    dry_multiplier: float = _option(
        0.0,
        number("0 (off) or more", lowest=0, highest=LARGEST_FLOAT),
        "Lower the logit of a token that would go on with a repeated sequence (DRY) by"
        " X * base ** (length - allowed length) (0: off).",
        "X",
    )
    dry_base: float = _option(
        1.75,
        number("1 or more", lowest=1, highest=LARGEST_FLOAT),
        "The base of --dry-multiplier's formula.",
        "X",
    )
    dry_allowed_length: int = _option(
        2,
        whole_number("1 or more", lowest=1),
        "The length of the shortest repeated sequence, in tokens, at which --dry-multiplier acts.",
        "N",
    )
    dry_sequence_breakers: tuple[str | TokenIds, ...] = _option(
        ("\n", ":", '"', "*"),
        BREAKERS,
        r"For --dry-multiplier, TEXT is the end of a sequence. Repeatable, in place of the default:"
        r" a line break, a colon, a quotation mark and an asterisk.",
        "TEXT",
    )
    logit_bias: tuple[tuple[int, float], ...] = _option(
        (),
        LOGIT_BIAS,
        "Numbers that are added to the logits of tokens: {token id: number}.",
        "BIASES",
        on_command_line=False,
    )
    sequence_bias: Biases = _option(
        (),
        SEQUENCE_BIAS,
        "Numbers that are added to the logit of the last token of a sequence, where the tokens"
        " before it were generated: [([token ids], number), ...].",
        "BIASES",
        on_command_line=False,
    )
    bad_words_ids: tuple[TokenIds, ...] = _option(
        (),
        SEQUENCES,
        "Sequences of token ids that are never generated.",
        "IDS",
        on_command_line=False,
    )
    suppress_tokens: TokenIds = _option(
        (),
        TOKEN_IDS,
        "Token ids that are never generated.",
        "IDS",
        on_command_line=False,
    )
    begin_suppress_tokens: TokenIds = _option(
        (),
        TOKEN_IDS,
        "Token ids that are not generated as the first token.",
        "IDS",
        on_command_line=False,
    )
    forced_bos_token_id: int | None = _option(
        None,
        TOKEN_ID,
        "The first token, behind a prompt of one token.",
        "ID",
        on_command_line=False,
    )
    forced_eos_token_id: TokenIds = _option(
        (),
        TOKEN_IDS_OR_ONE,
        "The last token, where the text reaches max_new_tokens: this one, or one of several.",
        "IDS",
        on_command_line=False,
    )
    exponential_decay_length_penalty: tuple[int, float] | None = _option(
        None,
        LENGTH_DECAY,
        "(start, factor): make the end tokens likelier and likelier after `start` new tokens.",
        "(N, X)",
        on_command_line=False,
    )
    guidance_scale: float = _option(
        1.0,
        number("0 to 1e30", lowest=0, highest=1e30),  # more overflows float32
        "Above 1: push the text away from the negative prompt (1: off). A step computes two rows.",
        "X",
    )
    num_beams: int = _option(
        1,
        whole_number("1 (off) or more", lowest=1, highest=1024),
        "Search for the likeliest text with N texts that grow together (1: off).",
        "N",
    )
    length_penalty: float = _option(
        1.0,
        number("-10 to 10", lowest=-10, highest=10),
        "In a search with beams, divide the logarithm of a text's probability by length ** X: above"
        " 0 prefers long texts, below 0 short ones.",
        "X",
    )
    early_stopping: bool | Literal["never"] = _option(
        False,
        EARLY_STOPPING,
        "When a search with beams ends. True: once as many texts as beams have ended. False: once"
        ' no text is likely to become better. "never": once none can.',
        "WHEN",
        on_command_line=False,
    )
    num_return_sequences: int = _option(
        1,
        whole_number("1 or more", lowest=1, highest=1024),
        "So many texts for each prompt: the best of the beams, or drawn with different seeds.",
        "N",
        on_command_line=False,
    )
    seed: int | None = _option(
        None,
        whole_number("0 to 2**128 - 1", lowest=0, highest=2**128 - 1),
        "Seed of the random draws: the same seed gives the same text (default: a random one).",
        "N",
        sampling_only=True,
    )
    stop: tuple[str, ...] = _option(
        (),
        TEXTS,
        r"End the text before TEXT. \n, \t, \r and \\ are escapes. Repeatable.",
        "TEXT",
    )
    stop_tokens: TokenIds = _option(
        (),
        TOKEN_IDS,
        "End the text at one of these token ids, in addition to the model's own end tokens.",
        "IDS",
        on_command_line=False,
    )
    # Not options of a call: only generation_config.json can set them.
    rules: Rules = NO_RULES

    def named_ids(self) -> dict[str, list[int]]:
        """For each option whose token ids must be in the vocabulary, those ids.

        In these options, transformers fails at an id outside the vocabulary. In suppress_tokens and
        begin_suppress_tokens, it ignores such an id.
        """
        forced_bos = () if self.forced_bos_token_id is None else (self.forced_bos_token_id,)
        return {
            "logit_bias": [token for token, _ in self.logit_bias],
            "sequence_bias": [token for word, _ in self.sequence_bias for token in word],
            "bad_words_ids": [token for word in self.bad_words_ids for token in word],
            "forced_bos_token_id": list(forced_bos),
            "forced_eos_token_id": list(self.forced_eos_token_id),
        }


SPECS: dict[str, OptionSpec] = {
    one.name: one.metadata["option"] for one in fields(Options) if "option" in one.metadata
}
DEFAULTS: dict[str, Any] = {one.name: one.default for one in fields(Options) if one.name in SPECS}


def flags(name: str) -> list[str]:
    """The command-line flags of an option: ["-n", "--max-new-tokens"]."""
    letter = SPECS[name].letter
    return [*([letter] if letter else []), f"--{name.replace('_', '-')}"]
