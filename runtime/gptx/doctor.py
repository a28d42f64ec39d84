"""Examine this machine for gptx: versions, processor, memory, working providers, conflicts.

Out: a Health, for programs and for cli/doctor.py. Optional packages are looked up by their metadata
and not imported, so a broken torch does not break the doctor.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptx.errors import ProviderError
from gptx.install import NAME, pip_command, version
from gptx.ort import native
from gptx.ort.cuda import open_on_cuda
from gptx.ort.device import CPU, CUDA
from gptx.ort.library import first_line, onnxruntime
from gptx.ort.sessions import open_on_cpu, open_session
from gptx.system.cpu import cpu_cores, cpu_features, cpu_name, memory

# Every distribution that installs the package `onnxruntime`. Two of them overwrite each other's
# files.
_ORT_VARIANTS = (
    *("", "-gpu", "-directml", "-openvino", "-qnn", "-rocm", "-migraphx", "-vitisai", "-cann"),
    "-training",
)
ORT_DISTRIBUTIONS = (
    *(f"onnxruntime{variant}" for variant in _ORT_VARIANTS),
    *("ort-nightly", "ort-nightly-gpu"),
)
NEEDED = ("numpy", "tokenizers", "click", "rich", "jinja2", "safetensors")
# Packages of the pipeline, and engines that gptx bench can compare with
OPTIONAL = (
    *("torch", "onnx", "onnxscript", "onnx-ir", "gguf", "huggingface-hub", "transformers"),
    *("optimum-onnx", "onnxruntime-genai", "ctranslate2", "llama-cpp-python", "openvino"),
)

# An ONNX model of one operator, Identity of one float, to try a provider with
# (tests/runtime/cli/test_cli_doctor.py makes it with onnx).
IDENTITY_MODEL = (
    b'\x08\x08::\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x04gptxZ\x0f\n\x01x\x12\n\n\x08'
    b"\x08\x01\x12\x04\n\x02\x08\x01"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime, tried on this machine."""

    name: str
    loads: bool
    reason: str  # why it does not load, else ""


@dataclass(frozen=True)
class Health:
    """Everything that the doctor found."""

    versions: dict[str, str | None]  # of required packages; None: missing
    optional: dict[str, str | None]  # of optional packages; None: not installed
    system: dict[str, str]  # operating system, and where Python and gptx are
    cpu: str
    cpu_features: list[str]
    cores: int
    memory: int | None  # bytes
    memory_free: int | None
    kernels: str  # the native kernels that models run on, or why there are none
    providers: list[Provider]
    problems: list[str]  # conflicts and missing packages, each with the command that helps


def examine() -> Health:
    """Examine everything. This takes a second or two, because each provider runs a tiny model."""
    onnxruntime = ort_installed()
    versions = {"gptx": version(), "Python": platform.python_version()}
    needed: dict[str, str | None] = {name: installed(name) for name in NEEDED}
    ort: dict[str, str | None] = dict(onnxruntime) or {"onnxruntime": None}
    tried, failure = _try_all() if onnxruntime else ([], None)
    total, free = memory()
    return Health(
        versions=versions | ort | needed,
        optional={name: installed(name) for name in OPTIONAL},
        system={
            "system": platform.platform(),
            "Python": sys.executable,
            "gptx": str(Path(__file__).parent),
        },
        cpu=cpu_name(),
        cpu_features=cpu_features(),
        cores=cpu_cores(),
        memory=total,
        memory_free=free,
        kernels=native.describe(),
        providers=tried,
        problems=_problems(onnxruntime, needed, failure),
    )


def version_line() -> str:
    """The line of `gptx --version`; imports nothing heavy."""
    ort = ", ".join(f"{name} {number}" for name, number in ort_installed().items())
    ort = ort or "no onnxruntime"
    return f"gptx {version()}, {ort}, {cpu_name()}"


def installed(distribution: str) -> str | None:
    """The version of a distribution, from its metadata; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def ort_installed() -> dict[str, str]:
    """Installed distributions of ONNX Runtime with their versions; more than one is a conflict."""
    return {name: number for name in ORT_DISTRIBUTIONS if (number := installed(name)) is not None}


def _try_all() -> tuple[list[Provider], str | None]:
    """Try every provider that ONNX Runtime lists; or the reason why ONNX Runtime does not load."""
    try:
        ort = onnxruntime()
    except ProviderError as error:
        return [], str(error)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "identity.onnx"
        model.write_bytes(IDENTITY_MODEL)
        return [try_provider(ort, name, model) for name in ort.get_available_providers()], None


def try_provider(ort: Any, name: str, model: Path) -> Provider:
    """Run the model in `model` on one provider; CPU and CUDA are opened as gptx.load opens them.

    Never raises: every failure becomes the reason of the result.
    """
    import numpy as np

    try:
        if name == CPU:
            session = open_on_cpu(model, 1)
        elif name == CUDA:
            session = open_on_cuda(model, 1, capture=False)
        else:
            options = ort.SessionOptions()
            options.log_severity_level = 4
            session = open_session(ort, model, options, [name])
        if session.get_providers()[0] != name:
            return Provider(name, False, f"ONNX Runtime fell back to {session.get_providers()[0]}")
        session.run(None, {"x": np.ones(1, np.float32)})
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        return Provider(name, False, first_line(error))
    return Provider(name, True, "")


def _problems(
    onnxruntime: dict[str, str], needed: dict[str, str | None], failure: str | None
) -> list[str]:
    found = [
        f"{name} is missing: install gptx again, with its dependencies"
        for name, v in needed.items()
        if v is None
    ]
    if not onnxruntime:
        found.append(
            f"ONNX Runtime is missing: {pip_command('cpu')}, or {pip_command('cuda')} for an"
            " NVIDIA GPU"
        )
    if len(onnxruntime) > 1:
        names = " and ".join(onnxruntime)
        keep = "cuda" if any("gpu" in name for name in onnxruntime) else "cpu"
        found.append(
            f"{names} are both installed and overwrite each other's files:"
            f" pip uninstall -y {' '.join(onnxruntime)}, then {pip_command(keep)}"
        )
    elif failure is not None:
        found.append(failure)
    others = [
        name for name in importlib.metadata.packages_distributions().get("gptx", []) if name != NAME
    ]
    if others:
        found.append(
            f"{others[0]} is another project with a package of the same name:"
            f" pip uninstall {others[0]}"
        )
    return found
