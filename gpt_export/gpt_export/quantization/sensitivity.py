"""Measure how much each layer matters: the mean KL when one layer at a time is less exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt_export.quantization.calibrate import embedded, linears
from gptx.progress import stage
from gptx_models.gpt.model import GPT, Cached

# a context manager in which the layer computes less exactly
Change = Callable[[nn.Linear], AbstractContextManager[None]]
TOKENS = 192  # of the text; each layer costs half a forward pass over them, on average
EVERY = 4  # logits of every 4th position only: the head costs as much as several layers


@torch.no_grad()
def sensitivities(
    gpt: GPT, window: list[int], change: Callable[[str], Change | None], what: str
) -> dict[str, float]:
    """Mean KL in nats, by linear layer, when only this layer is changed.

    window: token ids. change("blocks.3.mlp.down") -> the change of that layer, or None to leave it
    out. what: the progress bar's label. Only the blocks from the changed one on run again. The KL
    of all changes together is nearly the sum of these.
    """
    x, positions = embedded(gpt, window[:TOKENS])
    streams = [x]
    for block in gpt.layers:
        streams.append(block(streams[-1], Cached(gpt, positions)))
    expected = _log_probabilities(gpt, streams[-1])
    found: dict[str, float] = {}
    with stage(what, total=len(gpt.layers)) as advance:
        for index, block in enumerate(gpt.layers):
            for part, linear in linears(block).items():
                name = f"blocks.{index}.{part}"
                changed = change(name)
                if changed is None:
                    continue
                with changed(linear):
                    x = block(streams[index], Cached(gpt, positions))
                for later in gpt.layers[index + 1 :]:
                    x = later(x, Cached(gpt, positions))
                got = _log_probabilities(gpt, x)
                kl = (expected.exp() * (expected - got)).sum(-1).mean()
                found[name] = max(float(kl), 0.0)
            advance(1)
    return found


@torch.no_grad()
def cost_of(gpt: GPT, window: list[int], weights: Mapping[str, Tensor]) -> float:
    """Mean KL in nats when the named layers or embeddings all have other weights.

    It covers every position of `window`, because rows of an embedding matter only where they are
    read.
    """
    ids = torch.tensor([window])

    def log_probabilities() -> Tensor:
        return torch.log_softmax(gpt(ids)[0], -1)

    expected = log_probabilities()
    with ExitStack() as changes:
        for name, weight in weights.items():
            layer = gpt.get_submodule(name)
            assert isinstance(layer, nn.Linear | nn.Embedding)
            changes.enter_context(with_weight(layer, weight))
        got = log_probabilities()
    return max(float((expected.exp() * (expected - got)).sum(-1).mean()), 0.0)


def in_8_bits(block: int) -> Change:
    """The change to 8-bit activations, rounded as the operators do.

    block: number of activations that share a scale; 0: a whole row.
    """

    def change(x: Tensor) -> Tensor:
        n = x.shape[-1]
        size = block or n
        blocks = functional.pad(x, (0, -n % size)).unflatten(-1, (-1, size))
        step = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        return ((blocks / step).round() * step).flatten(-2)[..., :n]

    @contextmanager
    def rounded(linear: nn.Linear) -> Iterator[None]:
        hook = linear.register_forward_pre_hook(lambda _, args: (change(args[0]),))
        try:
            yield
        finally:
            hook.remove()

    return rounded


@contextmanager
def with_weight(layer: nn.Linear | nn.Embedding, weight: Tensor) -> Iterator[None]:
    """Give `layer` another weight inside the block."""
    own = layer.weight
    layer.weight = nn.Parameter(weight, requires_grad=False)
    try:
        yield
    finally:
        layer.weight = own


def _log_probabilities(gpt: GPT, stream: Tensor) -> Tensor:
    hidden = gpt.norm(stream[0, ::EVERY])
    return torch.log_softmax(gpt.head(hidden).double(), -1)
