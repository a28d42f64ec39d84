"""GPTConfig, the description of a GPT, and the presets by name.

Every model that gptx trains, imports or exports is described by one GPTConfig. It alone decides
what the model computes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gptx.artifact.bounds import digits, size_problem

Position = Literal["learned", "sinusoidal", "rope", "none"]
AttentionKind = Literal["dot", "cosine", "additive"]
Activation = Literal["relu", "gelu", "gelu_tanh", "swiglu"]
Norm = Literal["layernorm", "rmsnorm"]
NormPosition = Literal["pre", "post"]


@dataclass(frozen=True)
class GPTConfig:
    """The configuration of a GPT.

    `attention` and `window` take one value for all layers, or a tuple of n_layer values. Raises
    ValueError, which names the fields, if the values do not make a model.
    """

    vocab_size: int
    n_ctx: int  # longest context, in tokens
    n_layer: int
    n_head: int
    n_embd: int
    n_kv_head: int = 0  # 0: as many as n_head (multi-head); fewer: grouped-query attention
    head_dim: int = 0  # 0: n_embd / n_head
    n_inner: int = 0  # width of the feed-forward; 0: 4 * n_embd
    position: Position = "learned"
    rope_theta: float = 10000.0
    # As in Hugging Face's config.json: rope_type linear or llama3.
    rope_scaling: dict[str, Any] | None = None
    attention: AttentionKind | tuple[AttentionKind, ...] = "dot"
    # Tokens that a position sees, itself included; None: itself and all before it.
    window: int | None | tuple[int | None, ...] = None
    activation: Activation = "gelu_tanh"
    norm: Norm = "layernorm"
    norm_position: NormPosition = "pre"
    norm_eps: float = 1e-5
    attn_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True  # layernorm only; rmsnorm has no bias
    head_bias: bool = False
    tied: bool = True  # the head has the weights of the token embedding
    dropout: float = 0.0
    n_class: int = 0  # outputs of a classification head, which is never tied; 0: a language model

    def __post_init__(self) -> None:
        if problems := list(_type_problems(self)):
            raise ValueError("GPTConfig: " + "; ".join(problems))
        for name, value in (
            ("n_kv_head", self.n_head),
            ("head_dim", self.n_embd // max(self.n_head, 1)),
            ("n_inner", 4 * self.n_embd),
        ):
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        if self.norm == "rmsnorm":
            object.__setattr__(self, "norm_bias", False)
        for name in ("attention", "window"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        problems = list(_problems(self))
        if problems:
            raise ValueError("GPTConfig: " + "; ".join(problems))

    @property
    def head_is_embedding(self) -> bool:
        """True if the head and the token embedding share their weights."""
        return self.tied and not self.n_class

    def attention_of(self, layer: int) -> AttentionKind:
        return self.attention[layer] if isinstance(self.attention, tuple) else self.attention

    def window_of(self, layer: int) -> int | None:
        return self.window[layer] if isinstance(self.window, tuple) else self.window

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPTConfig:
        """The inverse of to_dict. Raises ValueError, which names keys that are not fields."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"GPTConfig: unknown fields {', '.join(unknown)};"
                f" known are {', '.join(sorted(known))}"
            )
        return cls(**values)


_SIZES = ("vocab_size", "n_ctx", "n_layer", "n_head", "n_embd")
_SIZES_OR_0 = ("n_kv_head", "head_dim", "n_inner", "n_class")
_SWITCHES = ("attn_bias", "mlp_bias", "norm_bias", "head_bias", "tied")
_NAMES = {
    "position": Position,
    "activation": Activation,
    "norm": Norm,
    "norm_position": NormPosition,
}
_TABLE = 2**30  # most values in a table of positions: 4 GB


def _type_problems(config: GPTConfig) -> Iterator[str]:
    """A sentence for each field that is wrong by itself. A file may hold values of any type."""
    for name in (*_SIZES, *_SIZES_OR_0):
        if problem := size_problem(name, getattr(config, name), least=int(name in _SIZES)):
            yield problem
    for name in _SWITCHES:
        if not isinstance(getattr(config, name), bool):
            yield f"{name} is {getattr(config, name)!r:.80}, expected true or false"
    for name, kinds in _NAMES.items():
        value = getattr(config, name)
        if not isinstance(value, str) or value not in get_args(kinds):
            yield f"{name} is {value!r:.80}, expected one of {', '.join(get_args(kinds))}"
    for name, low, high in (
        ("rope_theta", None, None),
        ("norm_eps", 0.0, None),
        ("dropout", 0.0, 1.0),
    ):
        if problem := number_problem(name, getattr(config, name), low=low, high=high):
            yield problem
    for name in ("attention", "window"):
        value = getattr(config, name)
        if isinstance(value, list | tuple) and len(value) != config.n_layer:
            yield f"{name} names {len(value)} layers of {config.n_layer!r:.80}"
        for item in value if isinstance(value, list | tuple) else (value,):
            if name == "attention" and (
                not isinstance(item, str) or item not in get_args(AttentionKind)
            ):
                kinds = ", ".join(get_args(AttentionKind))
                yield f"{name} is {item!r:.80}, expected one of {kinds}"
                break
            if name == "window" and item is not None and size_problem(name, item):
                yield f"{name} is {item!r:.80}, expected positive numbers of tokens or null"
                break
    if config.rope_scaling is not None:
        yield from rope_problems(config.rope_scaling)


def number_problem(
    name: str, value: Any, *, low: float | None = None, high: float | None = None
) -> str | None:
    """A sentence if `value` is not a number from `low` to `high`; else None.

    low: None stands for a number above 0. high: None stands for no limit.
    """
    expected = "a number above 0" if low is None else f"a number of at least {low:g}"
    expected += "" if high is None else f" and at most {high:g}"
    try:
        number = (
            float(value)
            if isinstance(value, int | float) and not isinstance(value, bool)
            else math.nan
        )
    except OverflowError:  # an int of hundreds of digits
        number = math.nan
    fits = math.isfinite(number) and (number > 0 if low is None else number >= low)
    if fits and (high is None or number <= high):
        return None
    found = digits(value) if isinstance(value, int) else repr(value)[:80]
    return f"{name} is {found}, expected {expected}"


ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def rope_problems(scaling: Any) -> Iterator[str]:
    """A sentence for each thing that is wrong with a rope_scaling.

    Its kind stands in `rope_type`, or in `type` in older files.
    """
    if not isinstance(scaling, dict):
        yield f"rope_scaling is {scaling!r:.80}, expected an object"
        return
    kinds = [scaling[name] for name in ("rope_type", "type") if scaling.get(name) is not None]
    kind = kinds[0] if kinds else None
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        yield f"rope_scaling names two types, {kinds[0]!r:.80} and {kinds[1]!r:.80}"
    elif not isinstance(kind, str) or kind not in ROPE_FIELDS:
        yield f"rope_scaling is of type {kind!r:.80}, expected one of {', '.join(ROPE_FIELDS)}"
    else:
        fields = ROPE_FIELDS[kind]
        if missing := [name for name in fields if scaling.get(name) is None]:
            yield f"rope_scaling of type {kind} lacks {', '.join(missing)}"
            return
        problems = [number_problem(f"rope_scaling's {name}", scaling[name]) for name in fields]
        yield from filter(None, problems)
        if (
            kind == "llama3"
            and not any(problems)
            and scaling["low_freq_factor"] >= scaling["high_freq_factor"]
        ):
            yield (
                f"rope_scaling's low_freq_factor is {scaling['low_freq_factor']}, expected less"
                f" than its high_freq_factor, {scaling['high_freq_factor']}"
            )


def _problems(config: GPTConfig) -> Iterator[str]:
    """A sentence for each set of fields that do not go together."""
    if config.n_head % config.n_kv_head:
        yield f"n_head ({config.n_head}) is not a multiple of n_kv_head ({config.n_kv_head})"
    if config.position == "rope" and config.head_dim % 2:
        yield f"head_dim is {config.head_dim}, and rope needs an even one"
    if problem := size_problem("n_head times head_dim", config.n_head * config.head_dim):
        yield problem
    table = config.n_ctx * {"rope": config.head_dim, "sinusoidal": config.n_embd}.get(
        config.position, 0
    )
    if table > _TABLE:
        yield (
            f"n_ctx is {config.n_ctx:,}, and the tables of its positions take"
            f" {4e-9 * table:,.0f} GB, expected at most 4"
        )


def gpt2(n_layer: int, n_head: int, n_embd: int, **changes: Any) -> GPTConfig:
    """A GPT-2 of the given depth and width (Radford et al. 2019, table 2), with `changes`."""
    shape: dict[str, Any] = dict(
        vocab_size=50257, n_ctx=1024, n_layer=n_layer, n_head=n_head, n_embd=n_embd
    )
    return GPTConfig(**{**shape, **changes})


PRESETS: dict[str, GPTConfig] = {
    # Radford et al. 2018: post-norm, learned positions, a BPE of 40,478
    "gpt1": gpt2(12, 12, 768, vocab_size=40478, n_ctx=512, norm_position="post"),
    "gpt2": gpt2(12, 12, 768),
    "gpt2-medium": gpt2(24, 16, 1024),
    "gpt2-large": gpt2(36, 20, 1280),
    "gpt2-xl": gpt2(48, 25, 1600),
    # Brown et al. 2020, section 2.1: GPT-2 with alternating dense and locally banded layers; the
    # 125M row of table 2.1. The paper does not give the width of the band: 256 is our choice.
    "gpt3-style": gpt2(12, 12, 768, n_ctx=2048, window=(None, 256) * 6),
    # nanoGPT's character model for a CPU: 4 layers of width 128, no biases
    "nano": gpt2(
        4,
        4,
        128,
        vocab_size=256,
        n_ctx=256,
        attn_bias=False,
        mlp_bias=False,
        norm_bias=False,
        activation="gelu",
    ),
    # SmolLM2-135M's shape
    "llama-style": GPTConfig(
        vocab_size=49152,
        n_ctx=2048,
        n_layer=30,
        n_head=9,
        n_kv_head=3,
        n_embd=576,
        n_inner=1536,
        position="rope",
        rope_theta=100000.0,
        activation="swiglu",
        norm="rmsnorm",
        attn_bias=False,
        mlp_bias=False,
    ),
}
