"""Time the products of one token on this machine, by shape and form of the layers.

They run in ONNX Runtime. Attention, norms and the rest of a graph are left out, so that a mix's
time is a sum over its layers.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from gpt_export.graph.attention_forms import OPSET
from gpt_export.graph.build import quiet
from gpt_export.graph.layers import Quantized, quantized_product
from gpt_export.mixed_precision.mix import forms_of
from gptx.ort.sessions import open_on_cpu
from gptx.progress import stage

TOGETHER = 4  # products of a kind in one graph; tracing more takes longer than running them
RUNS = 9  # per graph
# Bytes that are read before each run to empty the CPU's caches, so that weights come from memory as
# in a model.
CACHES = 100_000_000

Kind = tuple[tuple[int, int], tuple[tuple[int, int, int], ...]]  # shape, forms


class Several(nn.Module):
    """The sum of several products of one input."""

    def __init__(self, products: Iterable[nn.Module]):
        super().__init__()
        self.products = nn.ModuleList(products)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([one(x) for one in self.products]).sum(0)


class Timings:
    """Milliseconds that a product takes for one token, by shape and form."""

    def __init__(self) -> None:
        self.ms: dict[Kind, float] = {}

    def time(self, layers: Iterable[Quantized]) -> None:
        """Measure those weights whose shape and form were not measured before."""
        found: dict[Kind, list[Quantized]] = defaultdict(list)
        for weight in layers:
            if kind_of_weight(weight) not in self.ms:
                found[kind_of_weight(weight)].append(weight)
        with stage("Timing the products", total=len(found), quiet=not found) as advance:
            for kind, weights in found.items():
                self.ms[kind] = milliseconds(weights[:TOGETHER])
                advance(1)

    def of(self, weights: Mapping[str, Quantized]) -> float:
        """Milliseconds for one token through all layers and the head of a mix."""
        return sum(
            self.ms[kind_of_weight(w)]
            for name, w in weights.items()
            if name.startswith(("blocks.", "head"))
        )


def kind_of_weight(weight: Quantized) -> Kind:
    return weight.shape, forms_of(weight)


def milliseconds(weights: list[Quantized]) -> float:
    """Milliseconds of one product of the same kind: the fastest run, the least disturbed one."""
    n_in = weights[0].shape[1]
    x = torch.ones(1, 1, n_in)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            Several(quantized_product(weight, None) for weight in weights).eval(),
            (x,),
            dynamo=True,
            input_names=["x"],
            opset_version=OPSET["shared"],
            optimize=False,
        )
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="gptx-timing-") as folder:
        path = Path(folder) / "products.onnx"
        ir.save(program.model, path, external_data="products.onnx_data")
        session = open_on_cpu(path, None)
        values = {"x": np.random.default_rng(0).standard_normal((1, 1, n_in), np.float32)}
        session.run(None, values)
        other, times = np.ones(CACHES // 4, np.float32), []
        for _ in range(RUNS):
            other += 1.0
            began = time.perf_counter()
            session.run(None, values)
            times.append(time.perf_counter() - began)
        del session
    return 1e3 * min(times) / len(weights)
