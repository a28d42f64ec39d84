"""The library of native operators: what it exports, and that it needs only the C library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from builders.native_graphs import needs_library
from gptx.ort import native

pytest.importorskip("lief", exc_type=ImportError)
SCRIPT = Path(__file__).parents[3] / "runtime" / "kernels" / "symbols.py"


def inspect(library: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_library
def test_the_library_exports_its_functions_and_needs_only_c() -> None:
    library = native.library()
    assert library is not None
    done = inspect(library)
    assert done.returncode == 0, done.stdout + done.stderr
    functions = "choose exp exp_weights interface logsumexp log packed"
    names = [f"gptx_{name}" for name in functions.split()]
    assert f"exports  {' '.join(sorted(['RegisterCustomOps', *names]))}\n" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the names of Linux")
def test_a_library_of_cplusplus_is_found_out() -> None:
    """ONNX Runtime's own library is one."""
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    done = inspect(next(folder.glob("onnxruntime_pybind11_state*.so")))
    assert done.returncode == 1, done.stderr
    assert "problem: exports" in done.stdout
    assert "problem: needs the libraries" in done.stdout and "'libstdc++.so.6'" in done.stdout
    assert "of the C++ library" in done.stdout
