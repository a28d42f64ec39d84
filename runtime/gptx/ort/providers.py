"""The device contract: "cpu" | "cuda" | "auto" in, ONNX Runtime's session on that device out, or a ProviderError.

The one place that imports onnxruntime. Knows nothing of models: it opens whatever graph it is given.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

from gptx.errors import ProviderError, UsageError, shown
from gptx.install import pip_command
from gptx.system.cpu import cpu_features, int8_saturates

Device = Literal["cpu", "cuda", "auto"]
OLDEST = (1, 31)
OLDEST_THAT_COMPILES = (
    1,
    32,
)  # 1.31 reads packed weights of MatMulNBits back as NaN (onnxruntime #29163)
MOST_THREADS = 1024  # more than any machine has use for; 99999 fill the memory and never start
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_cuda_lock = threading.RLock()
# fp32 is not computed in TF32, as PyTorch has it; memory is taken as it is needed, not in powers of two
CUDA_OPTIONS = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
# ONNX Runtime leaves these to the CPU on purpose, beside CUDA: a few numbers, of which most become shapes
OF_SHAPES = {
    *(
        "Shape",
        "Size",
        "Gather",
        "Slice",
        "Concat",
        "Split",
        "Cast",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Range",
    ),
    *(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Neg",
        "Abs",
        "Min",
        "Max",
        "ReduceProd",
        "Equal",
        "Less",
        "Greater",
        "Where",
    ),
    *("Not", "And", "Or", "Expand", "ConstantOfShape", "Identity"),
}


def onnxruntime() -> Any:
    """The module, imported and of a version that gptx runs on. Raises ProviderError."""
    try:
        import onnxruntime as ort

        found = _number(ort)
        ort.InferenceSession  # noqa: B018  (a folder that pip left behind is a module without it)
    except (ImportError, AttributeError) as error:
        both = conflict()
        why = (
            f" ({both})"
            if both
            else ""
            if isinstance(error, ModuleNotFoundError)
            else f" ({error})"
        )
        raise ProviderError(
            f"ONNX Runtime is not installed{why}: {pip_command('cpu')} for this processor, "
            f"{pip_command('cuda')} for an NVIDIA GPU (one of the two, never both)"
        ) from error
    if found < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise ProviderError(
            f"ONNX Runtime {ort.__version__} is too old, gptx needs {needed} or newer: {pip_command(installed_extra())}"
        )
    return ort


def _number(ort: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in ort.__version__.split(".")[:2])


def library_folder() -> Path:
    """The folder of ONNX Runtime's shared libraries."""
    return Path(onnxruntime().__file__).parent / "capi"


def installed_packages() -> dict[str, str]:
    """Which of the distributions that hold ONNX Runtime are installed, with their versions."""
    import importlib.metadata  # with all that it imports 15 ms and 3 MB, and loading a model does without

    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def installed_extra() -> str:
    return "cuda" if "onnxruntime-gpu" in installed_packages() else "cpu"


def conflict() -> str | None:
    """A sentence when both distributions are installed: they hold the same files, and each overwrites the other's."""
    found = installed_packages()
    if len(found) < 2:
        return None
    names = " and ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{names} are both installed and overwrite each other: pip uninstall both, then install one"
    )


def check_options(device: str, threads: int | None) -> None:
    """Raises UsageError."""
    if not isinstance(device, str) or device not in get_args(Device):
        raise UsageError(
            f"device is {shown(device)}, expected one of {', '.join(get_args(Device))}"
        )
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
        raise UsageError(
            f"threads is {shown(threads)}, expected 1 to {MOST_THREADS}, or None for one per core"
        )


def tries_cuda(device: str) -> bool:
    """Whether CUDA is to be tried for this device."""
    return device == "cuda" or (
        device == "auto" and CUDA in onnxruntime().get_available_providers()
    )


def open_on_cpu(graph: Path, threads: int | None) -> Any:
    """ORT's InferenceSession. Errors of the graph come through as ORT's own, here and in open_on_cuda."""
    ort = onnxruntime()
    return open_session(ort, graph, _options(ort, threads))


def open_on_cuda(graph: Path, threads: int | None, *, capture: bool) -> Any:
    """ORT's InferenceSession, all of whose nodes that compute run on CUDA. capture: its runs become CUDA graphs, but for
    those that ask for none (run_options). Raises ProviderError."""
    need_cuda()
    with _cuda_lock:
        return _open_cuda(onnxruntime(), graph, threads, capture=capture)


def save_optimized(graph: Path, out: Path, weights: str) -> None:
    """Write what ONNX Runtime makes of a graph when it opens it on this CPU, the optimized graph to `out` and its weights
    beside it: each as it was, and as this CPU's kernels packed it. Raises ProviderError; errors of the graph are ORT's."""
    ort = onnxruntime()
    if _number(ort) < OLDEST_THAT_COMPILES:
        needed = ".".join(map(str, OLDEST_THAT_COMPILES))
        raise ProviderError(
            f"ONNX Runtime {ort.__version__} does not keep packed weights exactly, gptx compile needs {needed} or newer: "
            f"{pip_command(installed_extra())}"
        )
    options = _options(ort, 1)
    options.optimized_model_filepath = str(out)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", weights
    )
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    open_session(ort, graph, options)


def open_session(ort: Any, graph: Path, options: Any, providers: Sequence[Any] = (CPU,)) -> Any:
    """ORT's InferenceSession, which fails where it cannot be made.

    By default ORT's Python class prints "EP Error ... Falling back" on standard output, which is for the model's text,
    and tries once more on the CPU. It does so too when `run` fails.
    """
    return ort.InferenceSession(str(graph), options, providers=list(providers), enable_fallback=0)


def _options(ort: Any, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails comes as an exception, and is told in one sentence
    # ORT's threads spin after a run, for milliseconds, and take the cores from the rest of the app. 50 us bridge the gap
    # between two steps of a decode, and sessions that take turns do not feel them
    options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
    # a pattern is kept for every shape seen, and each step of a decode has another one
    options.enable_mem_pattern = False
    if int8_saturates(cpu_features()):
        # int8 weights become uint8, whose kernels are exact there; where there is VNNI this would only be slower
        options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def captures(session: Any) -> bool:
    """Whether a session's runs are captured as CUDA graphs and replayed (but for those whose id is -1)."""
    return session.get_provider_options().get(CUDA, {}).get("enable_cuda_graph") == "1"


def device_lock(provider: str) -> AbstractContextManager[Any]:
    """The lock that a thread holds while it uses the device.

    While a CUDA graph is captured, any other call that waits for the device fails, whichever thread or session makes it.
    So the process has one lock for CUDA. On a CPU threads need not wait for each other: the lock does nothing.
    """
    return _cuda_lock if provider == CUDA else nullcontext()


def run_options(graph_id: int) -> Any:
    """RunOptions for a session that captures: the CUDA graph that a run replays, captured by the first of that id."""
    options = onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options


def need_cuda() -> None:
    """Raises ProviderError where CUDA is not among what ONNX Runtime has here, or one of its libraries is missing."""
    ort = onnxruntime()
    if CUDA not in ort.get_available_providers():
        raise ProviderError(
            f"device 'cuda' needs onnxruntime-gpu, and the ONNX Runtime {ort.__version__} installed here has only "
            f"{', '.join(ort.get_available_providers())}: pip uninstall onnxruntime, then {pip_command('cuda')}"
        )
    _preload(ort)
    missing = missing_cuda_library(ort)
    if missing:
        raise ProviderError(
            f"device 'cuda' cannot be used: {missing}: {pip_command('cuda')} brings CUDA's libraries"
        )


def _open_cuda(ort: Any, graph: Path, threads: int | None, *, capture: bool) -> Any:
    class Session(ort.InferenceSession):
        """It is closed while holding the device lock, too: freeing the device's memory waits for the device."""

        def __del__(self) -> None:
            with _cuda_lock:
                self.__dict__.clear()

    options = _options(ort, threads)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    cuda = CUDA_OPTIONS | {"enable_cuda_graph": "1" if capture else "0"}
    try:
        session = Session(str(graph), options, providers=[(CUDA, cuda), CPU], enable_fallback=0)
    except (
        Exception
    ) as error:  # ORT has one class per status code and no base that tells CUDA's from the graph's
        if is_full(error):
            raise ProviderError(
                f"device 'cuda' has no room for the weights of {graph}: take device 'cpu'"
            ) from error
        if "CUDA" not in str(error) and "cuda" not in str(error):
            raise
        raise ProviderError(f"device 'cuda' cannot be used: {first_line(error)}") from error
    if session.get_providers()[0] != CUDA:
        raise ProviderError(
            f"device 'cuda' cannot be used: ONNX Runtime fell back to {session.get_providers()[0]}; "
            f"{conflict() or 'gptx doctor shows what this machine has'}"
        )
    try:  # providers can be listed and still not run: no device, or a driver that is too old
        import numpy as np

        ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", 0).numpy()
    except Exception as error:
        raise ProviderError(f"device 'cuda' cannot be used: {first_line(error)}") from error
    left = left_to_the_cpu(session.get_provider_graph_assignment_info())
    if left:
        names = ", ".join(f"{count} {kind}" for kind, count in left.items())
        raise ProviderError(
            f"device 'cuda' would compute {names} of {graph} on the CPU: ONNX Runtime {ort.__version__} has no CUDA kernel "
            "for them in these types; it runs all of what gptx quantize FP32_ARTIFACT OUT --to fp16 makes"
        )
    return session


def is_full(error: Exception) -> bool:
    """Whether ORT says that the device's memory is full, by its arena or by CUDA."""
    return any(words in str(error) for words in ("Failed to allocate memory", "out of memory"))


def left_to_the_cpu(assigned: Any) -> dict[str, int]:
    """How often each operator that computes is among the nodes that ONNX Runtime gave to the CPU, the most frequent first.

    `assigned`: what get_provider_graph_assignment_info returns. Beside CUDA nothing else says it: such a session is one
    of CUDA by all its names, and copies its tensors to the CPU and back at each of these nodes.
    """
    kinds = (node.op_type for part in assigned if part.ep_name == CPU for node in part.get_nodes())
    return dict(Counter(kind for kind in kinds if kind not in OF_SHAPES).most_common())


def _preload(ort: Any) -> None:
    """Load CUDA's libraries from the nvidia wheels, quietly: what is missing is named by missing_cuda_library."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()


def missing_cuda_library(ort: Any) -> str | None:
    """What the dynamic linker says when it loads ORT's CUDA provider; None when it loads (ORT itself only logs it)."""
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


def first_line(error: BaseException) -> str:
    """The part of an ORT error that a person can read: one line, without the status code in front, and of an error of
    CUDA's without the C++ function that it came from."""
    # ORT quotes names of the graph; with bytes in them that are not UTF-8, its words cannot become a Python text
    words = (
        error.object.decode(errors="replace")
        if isinstance(error, UnicodeDecodeError)
        else str(error)
    )
    lines = words.strip().splitlines() or [type(error).__name__]
    text = lines[0]
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    if (at := text.find("CUDA failure")) >= 0:
        text = text[at:].partition(" ; GPU=")[0]
    return text.strip()[:400]
