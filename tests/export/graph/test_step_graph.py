"""The step graph against PyTorch, and against itself: the same bits however tokens are run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.configurations import config_of, name_of, pairwise, small_presets
from builders.native_graphs import (
    empty_cache,
    linear_graph,
    needs_library,
    open_with,
    run_tokens,
    step_inputs,
)
from builders.random_gpt import random_gpt
from gpt_export.graph.layers import graph_layers
from gpt_export.graph.step_graph import build_step_graph
from gpt_export.quantization.recipes import SCHEMES, quantize_weights
from gpt_export.quantization.rotate import rotate

pytestmark = needs_library
CASES = {**small_presets(), **{name_of(choice): config_of(choice) for choice in pairwise()}}
DEFAULT = list(CASES)[: len(small_presets()) + 6]
SCHEMES_TESTED = ["fp32", "int8-cache", "int8-blocks", "int8-channels", "int4", "int4-fast"]
STATES = "last_hidden_state"
# ONNX Runtime's operators that move numbers and do not compute with them.
MOVES = {"Gather", "Concat"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.wide) for name in CASES],
)
def test_fp32_is_pytorch(name: str, tmp_path: Path) -> None:
    config = CASES[name]
    gpt, tokens = random_gpt(config), list(range(40, 80))
    with torch.no_grad():
        expected = gpt(torch.tensor([tokens]))[0].numpy()
    session = open_with(build_step_graph(graph_layers(gpt, "growing")), tmp_path, "", 2)
    found, _ = run_tokens(session, empty_cache(session, 2, 48), tokens, 1, range(40))
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("scheme", ["fp32", "rotated", "int8-blocks"])
@pytest.mark.parametrize("name", ["gpt1", "gpt2", "llama-style", "sinusoidal"])
def test_hidden_states_and_embeddings_are_pytorchs(name: str, scheme: str, tmp_path: Path) -> None:
    """Of a rotated model too: its states are rotated back, and rows of inputs_embeds rotated.

    inputs_embeds has the rows of the embedding table for some of the tokens.
    """
    config = CASES[name] if name in CASES else dataclasses.replace(CASES["gpt2"], position=name)
    gpt, tokens = random_gpt(config), np.arange(40, 70)
    with torch.no_grad():
        expected = gpt.hidden(torch.tensor(tokens)[None])[0].numpy()
        table = gpt.wte.weight.numpy().copy()
    made = {}
    if scheme == "rotated" and config.norm_position == "pre":
        rotate(gpt)
    elif scheme == "int8-blocks":
        made = quantize_weights(gpt, SCHEMES[scheme], [list(range(40))]).weights
    session = open_with(build_step_graph(graph_layers(gpt, "growing", made)), tmp_path, "", 2)
    feeds = step_inputs(session, empty_cache(session, 1, 32), tokens.tolist(), 0, range(30))
    feeds["logits_at"], feeds["hidden_at"] = feeds["logits_at"][:5], np.arange(30)
    ids, (logits, states) = feeds["input_ids"], session.run(["logits", STATES], feeds)
    near = {"fp32": 1e-5, "rotated": 1e-3, "int8-blocks": 0.05}[scheme]
    assert np.linalg.norm(states - expected) < near * np.linalg.norm(expected)
    if scheme == "fp32":  # the head's fused norm gives the same bits
        layout = 2 if gpt.head.transposed else 3
        weights, n = {"w": gpt.head.weight.detach().numpy()}, config.n_embd
        if gpt.head.bias is not None:
            weights["bias"] = gpt.head.bias.detach().numpy()
        head = linear_graph(weights, layout=layout, bits=32, n_in=n, terms=0, norm=0)
        none = np.zeros((5, config.vocab_size), np.float32)
        (of_states,) = open_with(head, tmp_path, "", 1).run(
            None, {"x": states[:5], "residual": none}
        )
        assert np.array_equal(of_states, logits)

    feeds["inputs_embeds"] = table[[43, 41]]
    ids[[1, 3]] = [-2, -1]
    found, others = session.run(["logits", STATES], feeds)
    if scheme == "fp32":
        assert np.array_equal(found, logits) and np.array_equal(others, states)
    assert np.linalg.norm(others - expected) < near * np.linalg.norm(expected)
    ids[3] = -3
    with pytest.raises(Exception, match="an id is outside the table"):
        session.run(["logits"], feeds)


def some(name: str, scheme: str) -> bool:
    """Cases of the default suite: fp32 with each value of a configuration, and two models.

    int8-cache: weights in fp32, keys and values in int8.
    """
    return name in DEFAULT and (scheme in ("fp32", "int8-cache") or name in ("gpt2", "llama-style"))


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        pytest.param(name, scheme, marks=() if some(name, scheme) else pytest.mark.wide)
        for name in CASES
        for scheme in SCHEMES_TESTED
    ],
)
def test_nothing_changes_a_bit(name: str, scheme: str, tmp_path: Path) -> None:
    """Neither kernels, threads, pieces nor other rows."""
    config = CASES[name]
    gpt = random_gpt(config)
    made, cache_type = {}, None
    if scheme == "int8-cache":
        cache_type = "int8"
    elif scheme != "fp32":
        made = quantize_weights(gpt, SCHEMES[scheme], [list(range(40))]).weights
    model = build_step_graph(graph_layers(gpt, "growing", made), cache_type)
    assert {node.op_type for node in model.graph if node.domain != "gptx"} <= MOVES
    length = config.n_ctx
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, length).tolist()
    plain = open_with(model, tmp_path, "plain", 1)
    expected, _ = run_tokens(plain, empty_cache(plain, 1, 64), tokens, 0, range(length))
    assert np.isfinite(expected).all()
    best = open_with(model, tmp_path, "", 3)
    cache, pieces = empty_cache(best, 3, 80), []
    for start, stop in ((0, 17), (17, 18), (18, 50), (50, length)):
        # between a row that is fed the same tokens, and a row that is fed one token a time
        mine = tokens[start:stop]
        rows = [0] * len(mine) + [1] * len(mine) + [2]
        places = [*range(start, stop), *range(start, stop), len(pieces)]
        logits, cache = run_tokens(best, cache, [*mine, *mine, 5], rows, places)
        assert np.array_equal(logits[: len(mine)], logits[len(mine) : -1])
        pieces.append(logits[: len(mine)])
    assert np.array_equal(np.concatenate(pieces).view(np.int32), expected.view(np.int32))
