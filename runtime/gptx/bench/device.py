"""A CUDA device: its name, its memory in use, and its memory's speed.

`python -m gptx.bench.device` prints the speed. Everything is asked from CUDA's runtime library,
which every engine for CUDA brings along.
"""

from __future__ import annotations

import ctypes
import json
from functools import cache
from typing import Any

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "cudart64_13.dll", "cudart64_12.dll")
SIZE = 1 << 30  # bytes that are copied at once, many times the device's caches
COPIES, PASSES = 20, 5
DEVICE_TO_DEVICE = 3  # cudaMemcpyKind


@cache
def cudart() -> Any:
    """CUDA's runtime library, by its name or out of the nvidia wheels. Raises OSError."""
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    from gptx.ort.library import onnxruntime

    onnxruntime().preload_dlls()  # loads them from the nvidia wheels
    return ctypes.CDLL(LIBRARIES[0])


def call(name: str, *arguments: Any) -> None:
    """Call a function of the library. Raises OSError if it returns an error."""
    status = getattr(cudart(), name)(*arguments)
    if status:
        raise OSError(f"{name} of CUDA's runtime library failed with status {status}")


def gpu_name() -> str:
    """The device's name, and the CUDA version of its driver."""
    # cudaDeviceProp begins with the name; the whole structure takes about a kilobyte.
    properties, version = ctypes.create_string_buffer(8192), ctypes.c_int()
    call("cudaGetDeviceProperties", properties, 0)
    call("cudaDriverGetVersion", ctypes.byref(version))
    major, minor = version.value // 1000, version.value % 1000 // 10
    return f"{properties.value.decode()}, driver for CUDA {major}.{minor}"


def taken() -> int:
    """Bytes of the device's memory in use by all processes.

    The first call creates this process's CUDA context, which takes memory itself.
    """
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return total.value - free.value


def copy_speed() -> float:
    """Bytes a second, read and written together, of the fastest copy within the device."""
    source, target, begin, end = (ctypes.c_void_p() for _ in range(4))
    for pointer in (source, target):
        call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(SIZE))
        call("cudaMemset", pointer, 1, ctypes.c_size_t(SIZE))
    for event in (begin, end):
        call("cudaEventCreate", ctypes.byref(event))
    fastest, took = float("inf"), ctypes.c_float()
    for _ in range(PASSES):
        call("cudaEventRecord", begin, None)
        for _ in range(COPIES):
            call("cudaMemcpyAsync", target, source, ctypes.c_size_t(SIZE), DEVICE_TO_DEVICE, None)
        call("cudaEventRecord", end, None)
        call("cudaEventSynchronize", end)
        call("cudaEventElapsedTime", ctypes.byref(took), begin, end)
        fastest = min(fastest, took.value / 1e3)
    return 2 * COPIES * SIZE / fastest


if __name__ == "__main__":
    print(json.dumps({"copy on the device": copy_speed()}))
