"""The installed ONNX Runtime: its module, version, packages and error texts.

Imports onnxruntime when it is first needed. Knows nothing of graphs and models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptx.errors import ProviderError
from gptx.install import pip_command

OLDEST = (1, 31)  # the oldest ONNX Runtime that gptx runs on


def onnxruntime() -> Any:
    """The onnxruntime module. Raises ProviderError if it is missing, damaged or too old."""
    try:
        import onnxruntime as ort

        found = version_of(ort)
        ort.InferenceSession  # noqa: B018  (missing if pip left only an empty folder)
    except (ImportError, AttributeError) as error:
        raise ProviderError(
            f"ONNX Runtime is not installed{_why(error)}: {pip_command('cpu')} for the CPU, or "
            f"{pip_command('cuda')} for an NVIDIA GPU (never both)"
        ) from error
    if found < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise ProviderError(
            f"ONNX Runtime {ort.__version__} is too old, gptx needs {needed} or newer: "
            f"{pip_command(installed_extra())}"
        )
    return ort


def _why(error: ImportError | AttributeError) -> str:
    """Why onnxruntime cannot be imported, in brackets; "" if it is not installed at all."""
    if both := conflict():
        return f" ({both})"
    return "" if isinstance(error, ModuleNotFoundError) else f" ({error})"


def version_of(ort: Any) -> tuple[int, ...]:
    """Major and minor version of the onnxruntime module, for comparisons."""
    return tuple(int(part) for part in ort.__version__.split(".")[:2])


def library_folder() -> Path:
    """The folder of ONNX Runtime's shared libraries."""
    return Path(onnxruntime().__file__).parent / "capi"


def installed_packages() -> dict[str, str]:
    """The versions of the installed packages that contain ONNX Runtime, by package name."""
    # Imported here: it takes 15 ms and 3 MB with its own imports, and loading a model needs none.
    import importlib.metadata

    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def installed_extra() -> str:
    """The extra of gptx that the installed ONNX Runtime belongs to: "cpu" or "cuda"."""
    return "cuda" if "onnxruntime-gpu" in installed_packages() else "cpu"


def conflict() -> str | None:
    """A sentence for the user if both onnxruntime and onnxruntime-gpu are installed, else None.

    The two packages hold the same files, so the one that was installed last overwrote the other.
    """
    found = installed_packages()
    if len(found) < 2:
        return None
    names = " and ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{names} are both installed and overwrite each other: pip uninstall both, then install one"
    )


def first_line(error: BaseException) -> str:
    """An ONNX Runtime error as one line for a person, at most 400 characters.

    Leaves out the status code in front and, of a CUDA error, the C++ function that reported it.
    """
    # ORT quotes names from the graph. If they are not UTF-8, Python cannot decode ORT's message,
    # and the UnicodeDecodeError holds the message as bytes.
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
