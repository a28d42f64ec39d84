"""Time one product of activations and quantized weights in ONNX Runtime, by operator and rows.

    python benchmarks/kernels.py --shapes 576x3072 1536x576 768x3072 --rows 1 8 128 512

Each operator has a graph of its own with many products, each with its own weights: so many that one
row must read them from memory, as decoding does. The sessions take turns; the figures are the
minimum over all turns, in ms per product.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gptx.bench.machine import lines, machine
from gptx.ort.library import onnxruntime
from gptx.system.cpu import cpu_cores

WEIGHTS = 64_000_000  # bytes of weights in a graph: larger than the last cache of most CPUs
RANDOM = np.random.default_rng(0)


class Graph:
    """Products that all read the input x (rows, n_in), and their weights."""

    def __init__(self, n_in: int, n_out: int) -> None:
        self.n_in, self.n_out = n_in, n_out
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, array: Any) -> str:
        self.initializers.append(
            numpy_helper.from_array(np.asarray(array), f"c{len(self.initializers)}")
        )
        return self.initializers[-1].name

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        out = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], domain=domain, **attributes))
        return out

    def model(self, outputs: list[str]) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "kernels",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", self.n_in])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = 10
        return model.SerializeToString()


def fp32(graph: Graph) -> str:
    return graph.node(
        "MatMul", "x", graph.constant(RANDOM.random((graph.n_in, graph.n_out), np.float32))
    )


def channels(graph: Graph) -> str:
    """MatMulIntegerToFloat, activations with a scale per row, as in graph.layers.ChannelProduct."""
    levels = RANDOM.integers(-127, 128, (graph.n_in, graph.n_out)).astype(np.int8)
    middle, axis = graph.constant(np.array(128, np.uint8)), graph.constant(np.array([-1]))
    row = graph.node("ReduceMax", graph.node("Abs", "x"), axis, keepdims=1)
    step = graph.constant(np.array(1 / 127, np.float32))
    q = graph.node("QuantizeLinear", graph.node("Div", "x", row), step, middle)
    scales = graph.constant(RANDOM.random(graph.n_out, np.float32))
    return graph.node(
        "MatMulIntegerToFloat",
        q,
        graph.constant(levels),
        row,
        scales,
        middle,
        domain="com.microsoft",
    )


def blocks(bits: int, block: int, accuracy_level: int = 4) -> Callable[[Graph], str]:
    """MatMulNBits. accuracy_level: 4 for activations in 8 bits, 1 for fp32."""

    def add(graph: Graph) -> str:
        count = -(-graph.n_in // block)
        packed = RANDOM.integers(0, 256, (graph.n_out, count, block * bits // 8), np.uint8)
        scales = RANDOM.random((graph.n_out, count), np.float32)
        attributes = {"K": graph.n_in, "N": graph.n_out, "bits": bits, "block_size": block}
        inputs = ["x", graph.constant(packed), graph.constant(scales)]
        return graph.node(
            "MatMulNBits",
            *inputs,
            domain="com.microsoft",
            accuracy_level=accuracy_level,
            **attributes,
        )

    return add


FORMS: dict[str, Callable[[Graph], str]] = {
    "fp32": fp32,
    "8 bits a channel": channels,
    "8 bits, blocks of 128": blocks(8, 128),
    "8 bits, blocks of 64": blocks(8, 64),
    "8 bits, blocks of 32": blocks(8, 32),
    "4 bits, blocks of 32": blocks(4, 32),
    "the same, fp32 activations": blocks(4, 32, accuracy_level=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["576x3072", "1536x576"], metavar="INxOUT")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 128, 512])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=cpu_cores())
    args = parser.parse_args()
    facts = machine("onnxruntime")
    print(*lines(facts), sep="\n")
    found = []
    for shape in args.shapes:
        n_in, n_out = map(int, shape.split("x"))
        count = max(2, WEIGHTS // (n_in * n_out))
        sessions = {
            name: session(add, n_in, n_out, count, args.threads) for name, add in FORMS.items()
        }
        print(
            f"\n{shape}, ms a product: {'':14}" + "".join(f"{rows:>9} rows" for rows in args.rows)
        )
        table = {name: [] for name in FORMS}
        for rows in args.rows:
            for name, least in timed(sessions, rows, n_in, args.turns).items():
                table[name].append(1e3 * least / count)
        for name, row in table.items():
            print(f"{name:36}" + "".join(f"{value:14.4f}" for value in row), flush=True)
            found.append({"shape": shape, "form": name, "ms": dict(zip(map(str, args.rows), row))})
    print(json.dumps({"benchmark": "kernels", **facts, "threads": args.threads, "products": found}))


def session(add: Callable[[Graph], str], n_in: int, n_out: int, count: int, threads: int) -> Any:
    graph = Graph(n_in, n_out)
    model = graph.model([add(graph) for _ in range(count)])
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def timed(sessions: dict[str, Any], rows: int, n_in: int, turns: int) -> dict[str, float]:
    """Seconds of the fastest run of each session."""
    x = RANDOM.standard_normal((rows, n_in)).astype(np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(turns + 1):  # the first turn warms up
        for name, one in sessions.items():
            began = time.perf_counter()
            one.run(None, {"x": x})
            seconds[name].append(time.perf_counter() - began)
    return {name: min(values[1:]) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
