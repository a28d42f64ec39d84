"""How much each layer matters: the KL of the model's text when one layer at a time is computed less exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt_export.quantization.calibrate import embedded, linears
from gptx.progress import stage
from gptx_models.gpt.model import GPT, Cached

Change = Callable[
    [nn.Linear], AbstractContextManager[None]
]  # the layer computes less exactly while the block lasts
TOKENS = 192  # of the text: each layer's figure costs half a forward pass over them
EVERY = 4  # positions apart: the head costs as much as several layers


@torch.no_grad()
def sensitivities(
    gpt: GPT, window: list[int], change: Callable[[str], Change | None], what: str
) -> dict[str, float]:
    """Mean KL (nats) on `window` for each linear layer under its change("blocks.3.mlp.down"); None leaves a layer out.

    Only the layers behind a change are run again. KLs of single layers add up to that of all of them, nearly.
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
    """The mean KL of layers or tables having other weights, all at once; on every position, as rows of a table matter only
    where they are read."""
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
    """Activations as the operators meet them: 8 bits, with a scale for each `block` of a row, or (0) for the whole row."""

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
    """`layer` has another weight while the block lasts."""
    own = layer.weight
    layer.weight = nn.Parameter(weight, requires_grad=False)
    try:
        yield
    finally:
        layer.weight = own


def _log_probabilities(gpt: GPT, stream: Tensor) -> Tensor:
    hidden = gpt.norm(stream[0, ::EVERY])
    return torch.log_softmax(gpt.head(hidden).double(), -1)
