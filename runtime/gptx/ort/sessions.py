"""ONNX Runtime's sessions on the CPU: a graph file in, an InferenceSession out.

Sets the session options that gptx always uses. Knows nothing of models: it opens any graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptx.errors import ProviderError
from gptx.install import pip_command
from gptx.ort import native
from gptx.ort.device import CPU
from gptx.ort.library import installed_extra, onnxruntime, version_of
from gptx.system.cpu import cpu_features, int8_saturates
from gptx.system.inside_library import inside_library

# ONNX Runtime 1.31 saves packed weights of MatMulNBits wrongly: they are read back as NaN
# (issue 29163).
OLDEST_THAT_COMPILES = (1, 32)


def open_on_cpu(graph: Path, threads: int | None) -> Any:
    """The InferenceSession of a graph on the CPU. threads: None for one per core.

    Raises ProviderError if ONNX Runtime is missing or too old. Errors of the graph are ONNX
    Runtime's own exceptions.
    """
    ort = onnxruntime()
    return open_session(ort, graph, session_options(ort, threads))


def open_native(graph: Path) -> Any:
    """The InferenceSession of a graph of native operators, with the kernels chosen last.

    ONNX Runtime gets one thread: the operators have a thread pool of their own.
    """
    ort = onnxruntime()
    options = session_options(ort, 1)
    native.register(options)
    return open_session(ort, graph, options)


def open_session(ort: Any, graph: Path, options: Any, providers: Sequence[Any] = (CPU,)) -> Any:
    """An InferenceSession that raises an error if the graph cannot be opened or run.

    By default, ORT's Python class prints "EP Error ... Falling back" and tries again on the CPU.
    enable_fallback=0 prevents both: standard output is for the model's text only.
    """
    with inside_library:
        return ort.InferenceSession(
            str(graph), options, providers=list(providers), enable_fallback=0
        )


def session_options(ort: Any, threads: int | None) -> Any:
    """SessionOptions as gptx needs them on every device. threads: None for one per core."""
    options = ort.SessionOptions()
    # Only fatal errors are logged: gptx turns the exceptions into messages of its own.
    options.log_severity_level = 4
    # After a run, ORT's threads spin for milliseconds and take the cores from the rest of the app.
    # Spinning for 50 us covers the time between two decode steps, also if sessions take turns.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
    # ORT would keep a memory pattern for each input shape, and every decode step has a new shape.
    options.enable_mem_pattern = False
    if int8_saturates(cpu_features()):
        # Turns int8 weights into uint8, whose kernels are exact on these CPUs. With VNNI the int8
        # kernels are exact too, and this would only be slower.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def save_optimized(graph: Path, out: Path, weights: str) -> None:
    """Open a graph on this CPU and save it as ONNX Runtime optimized it.

    The optimized graph is written to `out`, its weights to the file `weights` in the same folder.
    Weights are stored twice: unchanged, and packed for this CPU's kernels.

    Raises ProviderError if ONNX Runtime is missing or too old to save packed weights. Errors of the
    graph are ONNX Runtime's own exceptions.
    """
    ort = onnxruntime()
    if version_of(ort) < OLDEST_THAT_COMPILES:
        needed = ".".join(map(str, OLDEST_THAT_COMPILES))
        raise ProviderError(
            f"ONNX Runtime {ort.__version__} does not keep packed weights exactly, "
            f"gptx compile needs {needed} or newer: {pip_command(installed_extra())}"
        )
    options = session_options(ort, 1)
    options.optimized_model_filepath = str(out)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", weights
    )
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    open_session(ort, graph, options)
