"""One native attention operator for tests: its graph, its inputs, and PyTorch's answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper

from builders.native_graphs import open_with

ORDER = ("qkv", "row_ids", "position_ids", "keys", "values", "cos", "sin", "score", "row_starts")
ORDER += ("q_norm", "k_norm", "sinks", "key_scales", "value_scales")
OUTPUTS = {
    "Attention": ("out", "new_keys", "new_values"),
    "AttentionHalf": ("out", "new_keys", "new_values"),
    "AttentionByte": ("out", "new_keys", "new_values", "new_key_scales", "new_value_scales"),
}
CACHE_TYPES = {"Attention": np.float32, "AttentionHalf": np.float16, "AttentionByte": np.int8}
DOT, COSINE, ADDITIVE = range(3)


@dataclass(frozen=True)
class Case:
    """An operator, its shape, and the features that it uses."""

    operator: str = "Attention"
    kind: int = DOT
    n_head: int = 4
    n_kv_head: int = 2
    head_dim: int = 24
    turned: int = 0  # dimensions of a head that are rotated
    window: int = 0
    scale: float = 0
    softcap: float = 0
    norms: bool = False
    sinks: bool = False
    seed: int = 0
    epsilon: float = field(default=1e-5, init=False)

    def attributes(self) -> dict[str, Any]:
        names = ("n_head", "n_kv_head", "window", "kind", "scale", "softcap", "epsilon")
        return {name: getattr(self, name) for name in names}


def fixed_inputs(case: Case, positions: int) -> dict[str, np.ndarray]:
    """The inputs that do not depend on the tokens."""
    rng = np.random.default_rng(case.seed)
    made: dict[str, np.ndarray] = {}
    if case.turned:
        angles = np.outer(np.arange(positions), rng.uniform(0.1, 1, case.turned // 2))
        made |= {"cos": np.cos(angles), "sin": np.sin(angles)}
    if case.kind == COSINE:
        made["score"] = rng.uniform(1, 9, case.n_head)
    if case.kind == ADDITIVE:
        made["score"] = rng.normal(0, 1, (case.n_head, case.head_dim))
    if case.norms:
        made |= {name: rng.uniform(0.5, 1.5, case.head_dim) for name in ("q_norm", "k_norm")}
    if case.sinks:
        made["sinks"] = rng.normal(0, 2, case.n_head)
    return {name: array.astype(np.float32) for name, array in made.items()}


def random_qkv(case: Case, tokens: int) -> np.ndarray:
    width = (case.n_head + 2 * case.n_kv_head) * case.head_dim
    return np.random.default_rng(case.seed + 1).normal(0, 1, (tokens, width)).astype(np.float32)


def nan_cache(case: Case, rows: int, capacity: int) -> dict[str, np.ndarray]:
    """A cache of which nothing may be read: full of NaN, or of levels whose scales are NaN."""
    shape = (rows, case.n_kv_head, capacity, case.head_dim)
    if case.operator != "AttentionByte":
        full = np.full(shape, np.nan, CACHE_TYPES[case.operator])
        return {"keys": full, "values": full}
    scales = np.full(shape[:3], np.nan, np.float32)
    levels = np.full(shape, 99, np.int8)
    return {"keys": levels, "values": levels, "key_scales": scales, "value_scales": scales}


def attention_graph(
    operator: str,
    inputs: dict[str, np.ndarray],
    attributes: dict[str, Any],
    *,
    probabilities: bool = True,
) -> onnx.ModelProto:
    """A graph of one operator with the inputs of these names and types."""
    outputs = [*OUTPUTS[operator], *(["probabilities"] if probabilities else [])]
    count = len(ORDER) if operator == "AttentionByte" else len(ORDER) - 2
    names = [name if name in inputs else "" for name in ORDER[:count]]
    node = helper.make_node(operator, names, outputs, domain="gptx", **attributes)
    cache = helper.np_dtype_to_tensor_dtype(np.dtype(CACHE_TYPES[operator]))
    graph = helper.make_graph(
        [node],
        "attention",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(inputs[name].dtype), None
            )
            for name in names
            if name
        ],
        [
            helper.make_tensor_value_info(
                name, cache if name in ("new_keys", "new_values") else onnx.TensorProto.FLOAT, None
            )
            for name in outputs
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("gptx", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


class Runner:
    """A session of one case, with its cache."""

    def __init__(
        self,
        case: Case,
        folder: Path,
        *,
        kernels: str = "",
        threads: int = 2,
        rows: int = 1,
        capacity: int = 64,
        probabilities: bool = True,
    ) -> None:
        self.cache = nan_cache(case, rows, capacity)
        self.starts = np.zeros(rows, np.int64)
        self.fixed = fixed_inputs(case, capacity)
        feeds = self.feeds(random_qkv(case, 1), [0], [0])
        model = attention_graph(
            case.operator, feeds, case.attributes(), probabilities=probabilities
        )
        self.session = open_with(model, folder, kernels, threads)

    def feeds(self, qkv: np.ndarray, rows: Any, places: Any) -> dict[str, np.ndarray]:
        tokens = {"row_ids": np.asarray(rows, np.int64), "position_ids": np.asarray(places, "i8")}
        return {"qkv": qkv, **tokens, "row_starts": self.starts, **self.fixed, **self.cache}

    def run(self, qkv: np.ndarray, rows: Any, places: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """The output and the probabilities of these tokens; the cache keeps them."""
        out, *new = self.session.run(None, self.feeds(qkv, rows, places))
        self.cache = dict(zip(self.cache, new))
        return out, new[-1] if len(new) > len(self.cache) else None


def rotated(x: torch.Tensor, cos: np.ndarray, sin: np.ndarray) -> torch.Tensor:
    """x (T, heads, D): the two halves of its first dimensions are turned."""
    half = cos.shape[1]
    c, s = (torch.from_numpy(table).double()[: len(x), None] for table in (cos, sin))
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * c - second * s, second * c + first * s, rest], -1)


def cached(case: Case, cache: dict[str, np.ndarray], tokens: int) -> list[torch.Tensor]:
    """The keys and values (T, n_kv_head, D) of row 0, as the cache gives them back."""
    keys, values = cache["keys"][0], cache["values"][0]
    keys = keys.reshape(case.n_kv_head, -1, case.head_dim, 16).swapaxes(2, 3).reshape(values.shape)
    made = [keys.astype(np.float64), values.astype(np.float64)]
    if case.operator == "AttentionByte":
        made = [
            x * cache[name][0, ..., None] for x, name in zip(made, ("key_scales", "value_scales"))
        ]
    return [torch.from_numpy(x[:, :tokens].swapaxes(0, 1)) for x in made]


def close(operator: str, x: torch.Tensor, y: torch.Tensor) -> bool:
    """True if the cache's numbers x (T, heads, D) are y, rounded as the operator stores them."""
    peak = y.abs().amax(-1, keepdim=True)
    limit = {"Attention": 1e-5, "AttentionHalf": 2**-11 + 1e-5, "AttentionByte": 0.501 / 127}
    return bool(((x - y).abs() <= limit[operator] * peak + 1e-7).all())


def expected(
    case: Case, qkv: np.ndarray, fixed: dict[str, np.ndarray], cache: dict[str, np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch's output (T, H D) and probabilities (T, H, T) of the tokens 0 .. T of a row.

    cache: as the operator left it. Its keys and values are used if they are those of PyTorch.
    """
    heads, groups, d = case.n_head, case.n_kv_head, case.head_dim
    weights = {name: torch.from_numpy(array).double() for name, array in fixed.items()}
    x = torch.from_numpy(qkv).double().unflatten(1, (-1, d))  # (T, H + 2 G, D)
    q, k, v = x.split([heads, groups, groups], 1)
    if case.norms:
        q = torch.nn.functional.rms_norm(q, (d,), weights["q_norm"], case.epsilon)
        k = torch.nn.functional.rms_norm(k, (d,), weights["k_norm"], case.epsilon)
    if case.turned:
        q, k = (rotated(one, fixed["cos"], fixed["sin"]) for one in (q, k))
    if case.kind == COSINE:
        q, k = (torch.nn.functional.normalize(one, dim=-1) for one in (q, k))
    found = cached(case, cache, len(qkv))
    assert close(case.operator, found[0], k) and close(case.operator, found[1], v)
    k, v = (one.repeat_interleave(heads // groups, 1) for one in found)
    if case.kind == ADDITIVE:
        scores = (weights["score"] * (q[:, None] + k[None]).tanh()).sum(-1).movedim(2, 0)
    else:
        scores = torch.einsum("thd,shd->hts", q, k)
        factor = torch.tensor(case.scale or d**-0.5)
        scores = scores * (weights["score"][:, None, None] if case.kind == COSINE else factor)
    if case.softcap:
        scores = case.softcap * (scores / case.softcap).tanh()
    length = len(qkv)
    behind = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (behind < 0) | (behind >= (case.window or length))
    scores = scores.masked_fill(hidden, -torch.inf)
    if case.sinks:
        sink = weights["sinks"][:, None, None].expand(heads, length, 1)
        scores = torch.cat([scores, sink], -1)
    probabilities = scores.softmax(-1)[..., :length]
    out = torch.einsum("hts,shd->thd", probabilities, v)
    return out.flatten(1), probabilities.movedim(0, 1)
