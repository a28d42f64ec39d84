"""Time the products of one token on this machine, by shape and form of the layers.

They run on the operators that the artifact will run on here: native ones, or ONNX Runtime's. Left
out are attention, norms and the rest of a graph, so that a mix's time is a sum over its layers.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from gpt_export.graph.attention_forms import OPSET
from gpt_export.graph.build import quiet
from gpt_export.graph.layers import Quantized, quantized_product
from gpt_export.graph.step_graph import build_products, has_step_graph
from gpt_export.mixed_precision.mix import forms_of
from gpt_export.quantization.offsets import OffsetWeights
from gptx.ort import native
from gptx.ort.sessions import open_native, open_on_cpu
from gptx.progress import stage
from gptx.system.cpu import cpu_cores
from gptx_models.gpt.config import GPTConfig

TOGETHER = 4  # products of a kind in one graph; tracing more takes longer than running them
RUNS = 9  # per graph
# Bytes that are read before each run to empty the CPU's caches, so that weights come from memory as
# in a model.
CACHES = 100_000_000

# shape, forms, and True for weights with offsets
Kind = tuple[tuple[int, int], tuple[tuple[int, int, int], ...], bool]


class Timings:
    """Milliseconds that a product takes for one token, by shape and form.

    kernels: the native kernels that are timed; None: ONNX Runtime's operators.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.kernels = native.choose_kernels(cpu_cores()) if has_step_graph(config) else None
        self.ms: dict[Kind, float] = {}

    @property
    def operators(self) -> str:
        """The timed operators in words."""
        return f"native operators ({self.kernels})" if self.kernels else "ONNX Runtime's operators"

    def time(self, layers: Iterable[Quantized]) -> None:
        """Measure those weights whose shape and form were not measured before."""
        found: dict[Kind, list[Quantized]] = defaultdict(list)
        for weight in layers:
            if kind_of_weight(weight) not in self.ms:
                found[kind_of_weight(weight)].append(weight)
        with stage("Timing the products", total=len(found), quiet=not found) as advance:
            for kind, weights in found.items():
                self.ms[kind] = milliseconds(weights[:TOGETHER], natively=bool(self.kernels))
                advance(1)

    def of(self, weights: Mapping[str, Quantized]) -> float:
        """Milliseconds for one token through all layers and the head of a mix."""
        return sum(
            self.ms[kind_of_weight(w)]
            for name, w in weights.items()
            if name.startswith(("blocks.", "head"))
        )


def kind_of_weight(weight: Quantized) -> Kind:
    return weight.shape, forms_of(weight), isinstance(weight, OffsetWeights)


def milliseconds(weights: Sequence[Quantized], *, natively: bool) -> float:
    """Milliseconds of one of several products of a kind: the fastest run, the least disturbed one.

    natively: on native operators, else on ONNX Runtime's.
    """
    n_in = weights[0].shape[1]
    values = {"x": np.random.default_rng(0).standard_normal((1, n_in), np.float32)}
    with tempfile.TemporaryDirectory(prefix="gptx-timing-") as folder, torch.no_grad():
        path = Path(folder) / "products.onnx"
        products = [quantized_product(weight, None).eval() for weight in weights]
        if natively:
            ir.save(build_products(products, n_in), path, external_data="products.onnx_data")
            native.choose_kernels(cpu_cores())
            session = open_native(path)
        else:
            ir.save(_traced(products, n_in), path, external_data="products.onnx_data")
            session = open_on_cpu(path, None)
            values["x"] = values["x"][None]
        fastest = _fastest(session, values)
        del session
    return 1e3 * fastest / len(weights)


class Several(nn.Module):
    """The sum of several products of one input."""

    def __init__(self, products: Iterable[nn.Module]):
        super().__init__()
        self.products = nn.ModuleList(products)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([one(x) for one in self.products]).sum(0)


def _traced(products: Sequence[nn.Module], n_in: int) -> ir.Model:
    """A graph of ONNX Runtime's operators, with the input x (1, 1, n_in)."""
    with quiet():
        program = torch.onnx.export(
            Several(products).eval(),
            (torch.ones(1, 1, n_in),),
            dynamo=True,
            input_names=["x"],
            opset_version=OPSET["shared"],
            optimize=False,
        )
    assert program is not None
    return program.model


def _fastest(session: Any, values: Mapping[str, np.ndarray]) -> float:
    """Seconds of the fastest run, each with weights that come from memory."""
    session.run(None, values)
    other, times = np.ones(CACHES // 4, np.float32), []
    for _ in range(RUNS):
        other += 1.0
        began = time.perf_counter()
        session.run(None, values)
        times.append(time.perf_counter() - began)
    return min(times)
