"""OpenVINO: `openvino:FOLDER[:f32]`, an IR folder as optimum-intel writes it.

OpenVINO computes in bf16 where the processor can, unless the variant is f32. The model is stateful:
the inference request holds its cache. The head is computed for the last token of a prompt only, as
in openvino-genai. openvino-genai itself is not used, because it keeps the cache of earlier prompts.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gptx.bench.engine import Engine, Job, Loaded, Logits, timed

if TYPE_CHECKING:
    import numpy as np


def start() -> Any:
    return importlib.import_module("openvino")


def _opened(job: Job, *, last_only: bool) -> Any:
    """The inference request of the compiled model."""
    core = start().Core()
    file = job.path / "openvino_model.xml" if job.path.is_dir() else job.path
    model = core.read_model(file)
    if last_only:
        _keep_last(model)
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(job.threads)}
    if job.variant:
        options["INFERENCE_PRECISION_HINT"] = job.variant
    return core.compile_model(model, "CPU", options).create_infer_request()


def _keep_last(model: Any) -> None:
    """Cut the input of the head, (1, S, width), to its last position."""
    import numpy as np

    head = model.output("logits").get_node().input_value(0).get_node()
    if head.get_type_name() != "MatMul":
        return
    last, end, step, axis = (np.array([value], np.int64) for value in (-1, -2, -1, 1))
    head.input(0).replace_source_output(
        start().opset13.slice(head.input_value(0), last, end, step, axis).output(0)
    )
    model.validate_nodes_and_infer_types()


def _feed(request: Any, new: list[int], held: int) -> np.ndarray:
    """Logits (S or 1, vocab_size) after the tokens `new`; the cache holds `held` tokens."""
    import numpy as np

    known = {name for port in request.model_inputs for name in port.get_names()}
    inputs = {
        "input_ids": np.array([new], np.int64),
        "attention_mask": np.ones((1, held + len(new)), np.int64),
        "position_ids": np.arange(held, held + len(new))[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    request.infer({name: value for name, value in inputs.items() if name in known})
    return request.get_tensor("logits").data[0]


def load(job: Job) -> Loaded:
    import numpy as np

    request = _opened(job, last_only=True)

    def tokens(prompt: list[int], n: int) -> Iterator[int]:
        request.reset_state()
        new, held = prompt, 0
        for _ in range(n + 1):
            logits = _feed(request, new, held)[-1]
            logits[job.ends] = -np.inf
            held += len(new)
            new = [int(logits.argmax())]
            yield new[0]

    return Loaded(lambda prompt, n: timed(tokens(prompt, n)))


def logits(job: Job) -> Logits:
    import numpy as np

    request = _opened(job, last_only=False)

    def after_each(window: list[int]) -> np.ndarray:
        request.reset_state()
        return np.array(_feed(request, window, 0), np.float32)

    return after_each


ENGINE = Engine(("openvino",), "pip install openvino", start, load, logits, takes_variant=True)
