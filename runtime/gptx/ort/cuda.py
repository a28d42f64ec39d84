"""Open ONNX Runtime's sessions on CUDA, and check that CUDA works.

A session computes its whole graph on CUDA. Otherwise it is not opened, and a ProviderError names
what is missing. Knows nothing of models: it opens any graph.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from gptx.errors import ProviderError
from gptx.install import pip_command
from gptx.ort.device import CPU, CUDA
from gptx.ort.library import conflict, first_line, library_folder, onnxruntime
from gptx.ort.sessions import session_options

NOT_CAPTURED = -1  # the CUDA graph id of a run that ORT neither captures nor replays
_cuda_lock = threading.RLock()
# fp32 products are computed in fp32, not in TF32, as in PyTorch by default. Device memory is
# requested in the sizes that are needed, not in powers of two.
CUDA_OPTIONS = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
# Operators that compute shapes and other small integers. In sessions on CUDA too, ONNX Runtime
# leaves them to the CPU on purpose.
# fmt: off
OF_SHAPES = frozenset((
    "Shape", "Size", "Gather", "Slice", "Concat", "Split", "Cast", "Squeeze", "Unsqueeze",
    "Reshape", "Range", "Expand", "ConstantOfShape", "Identity", "Where", "Not", "And", "Or",
    "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max", "ReduceProd", "Equal", "Less",
    "Greater",
))
# fmt: on


def open_on_cuda(graph: Path, threads: int | None, *, capture: bool) -> Any:
    """The InferenceSession of a graph on CUDA.

    capture: each run is captured as a CUDA graph and replayed afterwards; see run_options.

    Raises ProviderError if CUDA cannot be used, if the weights do not fit into the device's memory,
    or if ONNX Runtime would compute a part of the graph on the CPU. Errors of the graph are ONNX
    Runtime's own exceptions.
    """
    need_cuda()
    with _cuda_lock:
        session = _open_session(graph, threads, capture=capture)
        _check_device_works()
        _check_all_on_cuda(session, graph)
    return session


def captures(session: Any) -> bool:
    """True if the session captures its runs as CUDA graphs."""
    return session.get_provider_options().get(CUDA, {}).get("enable_cuda_graph") == "1"


def run_options(graph_id: int) -> Any:
    """RunOptions for one run of a session that captures.

    The first run with a graph_id is captured as a CUDA graph, later ones replay it. A run with
    NOT_CAPTURED is an ordinary run.
    """
    options = onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options


def device_lock(provider: str) -> AbstractContextManager[Any]:
    """The lock that a thread holds while it uses the device.

    While a CUDA graph is captured, any other call that waits for the device fails, whichever thread
    or session makes it. So the process has one lock for CUDA. On a CPU threads need not wait for
    each other: the lock does nothing.
    """
    return _cuda_lock if provider == CUDA else nullcontext()


def need_cuda() -> None:
    """Raise ProviderError if ONNX Runtime was built without CUDA, or a CUDA library is missing."""
    ort = onnxruntime()
    if CUDA not in ort.get_available_providers():
        raise ProviderError(
            "device 'cuda' needs onnxruntime-gpu, and the ONNX Runtime "
            f"{ort.__version__} installed here has only "
            f"{', '.join(ort.get_available_providers())}: "
            f"pip uninstall onnxruntime, then {pip_command('cuda')}"
        )
    _preload(ort)
    if missing := missing_cuda_library():
        raise ProviderError(
            f"device 'cuda' cannot be used: {missing}: "
            f"{pip_command('cuda')} brings CUDA's libraries"
        )


def _preload(ort: Any) -> None:
    """Load CUDA's libraries from the nvidia wheels, without ORT's messages on standard output.

    A library that is missing is reported by missing_cuda_library.
    """
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()


def missing_cuda_library() -> str | None:
    """The dynamic linker's error when it loads ORT's CUDA provider; None if it loads.

    ORT itself only logs that error.
    """
    import ctypes

    folder = library_folder()
    if os.name == "nt":
        libraries = ["onnxruntime_providers_shared.dll", "onnxruntime_providers_cuda.dll"]
    else:
        libraries = ["libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"]
    try:
        for library in libraries:
            ctypes.CDLL(str(folder / library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return first_line(error)
    return None


def _open_session(graph: Path, threads: int | None, *, capture: bool) -> Any:
    ort = onnxruntime()

    class Session(ort.InferenceSession):
        """A session that takes the lock when it is freed: freeing memory waits for the device."""

        def __del__(self) -> None:
            with _cuda_lock:
                self.__dict__.clear()

    options = session_options(ort, threads)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    cuda = CUDA_OPTIONS | {"enable_cuda_graph": "1" if capture else "0"}
    try:
        session = Session(str(graph), options, providers=[(CUDA, cuda), CPU], enable_fallback=0)
    except Exception as error:
        # Errors of CUDA and errors of the graph have the same classes; only their texts differ.
        if is_full(error):
            raise ProviderError(
                f"device 'cuda' has no room for the weights of {graph}: take device 'cpu'"
            ) from error
        if "CUDA" not in str(error) and "cuda" not in str(error):
            raise
        raise ProviderError(f"device 'cuda' cannot be used: {first_line(error)}") from error
    if session.get_providers()[0] != CUDA:
        raise ProviderError(
            "device 'cuda' cannot be used: ONNX Runtime fell back to "
            f"{session.get_providers()[0]}; "
            f"{conflict() or 'gptx doctor shows what this machine has'}"
        )
    return session


def _check_device_works() -> None:
    """Raise ProviderError if nothing can be computed: there is no GPU, or its driver is too old."""
    import numpy as np

    try:
        onnxruntime().OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", 0).numpy()
    except Exception as error:
        raise ProviderError(f"device 'cuda' cannot be used: {first_line(error)}") from error


def _check_all_on_cuda(session: Any, graph: Path) -> None:
    left = left_to_the_cpu(session.get_provider_graph_assignment_info())
    if left:
        names = ", ".join(f"{count} {kind}" for kind, count in left.items())
        raise ProviderError(
            f"device 'cuda' would compute {names} of {graph} on the CPU: "
            f"ONNX Runtime {onnxruntime().__version__} has no CUDA kernel for them in these types; "
            "it has kernels for all of an fp16 artifact: gptx quantize FP32_ARTIFACT OUT --to fp16"
        )


def left_to_the_cpu(assigned: Any) -> dict[str, int]:
    """The number of nodes that ORT gave to the CPU, by operator, the most frequent first.

    Operators in OF_SHAPES do not count. assigned: the result of get_provider_graph_assignment_info.
    A session that leaves nodes to the CPU still names CUDA as its first provider, and copies
    tensors to the CPU and back at each of these nodes. Only the assignment shows that.
    """
    kinds = (node.op_type for part in assigned if part.ep_name == CPU for node in part.get_nodes())
    return dict(Counter(kind for kind in kinds if kind not in OF_SHAPES).most_common())


def is_full(error: Exception) -> bool:
    """True for an error of ORT's arena or of CUDA that says that the device's memory is full."""
    return any(words in str(error) for words in ("Failed to allocate memory", "out of memory"))
