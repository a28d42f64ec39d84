"""The library of native operators on other processors, which qemu-user imitates."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builders.native_graphs import needs_library
from gptx.ort import native

sys.path.insert(0, str(Path(__file__).parents[3] / "runtime" / "kernels"))

import build  # pyright: ignore[reportMissingImports]

QEMU = shutil.which("qemu-x86_64")
needs_qemu = pytest.mark.skipif(
    QEMU is None or platform.machine() != "x86_64" or platform.system() != "Linux",
    reason="needs qemu-x86_64 on x86-64 Linux",
)

CHOOSE = """
import ctypes, sys
choose = ctypes.CDLL(sys.argv[1]).gptx_choose
choose.restype = ctypes.c_char_p
print(choose(sys.argv[2].encode() or None, 1, 0))
"""


def chosen(processor: str, asked: str) -> str:
    command = [QEMU, "-cpu", processor, sys.executable, "-c", CHOOSE, str(native.library()), asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # type: ignore[arg-type]
    return done.stdout.strip()


@needs_library
@needs_qemu
@pytest.mark.parametrize(("processor", "name"), [("Nehalem", "plain"), ("Haswell", "avx2")])
def test_older_processors_get_kernels_that_they_can_run(processor: str, name: str) -> None:
    assert chosen(processor, "") == repr(name.encode())


@needs_library
@needs_qemu
def test_kernels_that_a_processor_lacks_are_refused() -> None:
    assert chosen("Nehalem", "avx2") == "None"


def test_ziglang_builds_for_any_processor_of_the_kind() -> None:
    pytest.importorskip("ziglang")
    command = [
        *build.zig(),
        *build.aim_of(build.zig(), None),
        "-x",
        "c++",
        "-dM",
        "-E",
        "/dev/null",
    ]
    macros = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {"__x86_64__", "__aarch64__"} & {*macros}
    assert not {"__AVX__", "__ARM_FEATURE_DOTPROD"} & {*macros}
