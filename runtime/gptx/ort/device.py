"""The device that a caller chooses: "cpu", "cuda" or "auto"."""

from __future__ import annotations

from typing import Literal, get_args

from gptx.errors import UsageError, shown
from gptx.ort.library import onnxruntime

Device = Literal["cpu", "cuda", "auto"]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"  # ONNX Runtime's names
MOST_THREADS = 1024  # more than the cores of any machine; 99,999 threads would fill the memory


def check_device(device: str, threads: int | None) -> None:
    """Raise UsageError for an unknown device, or a number of threads that is out of range."""
    if not isinstance(device, str) or device not in get_args(Device):
        raise UsageError(
            f"device is {shown(device)}, expected one of {', '.join(get_args(Device))}"
        )
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
        raise UsageError(
            f"threads is {shown(threads)}, expected 1 to {MOST_THREADS}, or None for one per core"
        )


def tries_cuda(device: str) -> bool:
    """True for "cuda", and for "auto" if the installed ONNX Runtime was built with CUDA."""
    return device == "cuda" or (
        device == "auto" and CUDA in onnxruntime().get_available_providers()
    )
