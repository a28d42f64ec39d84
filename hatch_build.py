"""Build the library of native operators when gptx is installed, if there is a C++ compiler.

A build that fails ends in a wheel without the library, which runs on ONNX Runtime's operators.
GPTX_BUILD_KERNELS=require makes it an error, GPTX_BUILD_KERNELS=none leaves the library out. The
name of a target in runtime/kernels/build.py makes a wheel for another system (.ci/wheels.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path(__file__).parent / "runtime" / "kernels"
sys.path.insert(0, str(KERNELS))

import build  # noqa: E402  (runtime/kernels/build.py)


class KernelsHook(BuildHookInterface):
    """hatchling calls `dependencies` and `initialize` for each wheel and editable install."""

    def dependencies(self) -> list[str]:
        """The compiler of the package ziglang, where there is no other, or for another system."""
        mode = os.environ.get("GPTX_BUILD_KERNELS", "")
        needed = mode in build.TARGETS or (mode != "none" and build.compiler() is None)
        return ["ziglang"] if needed else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        mode = os.environ.get("GPTX_BUILD_KERNELS", "")
        if mode == "none":
            return
        if mode in build.TARGETS:
            return self.build_for(mode, build_data)
        library = Path(self.root) / "runtime" / "gptx" / "ort" / build.library_name()
        try:
            build.build(library, build.compiler() or ["c++"])
        except (OSError, subprocess.CalledProcessError) as error:
            if mode == "require":
                raise RuntimeError(getattr(error, "stderr", None) or str(error)) from error
            self.app.display_warning(
                "gptx: the native operators were not built; ONNX Runtime's are used instead"
            )
            return
        set_tag(build_data, sysconfig.get_platform().replace("-", "_").replace(".", "_"))
        build_data["artifacts"].append(f"/{library.relative_to(self.root).as_posix()}")

    def build_for(self, target: str, build_data: dict[str, Any]) -> None:
        """Build for another system, outside the tree: this system's library stays as it is."""
        self.folder = tempfile.TemporaryDirectory(prefix="gptx-wheel-")
        library = Path(self.folder.name) / build.library_name(target)
        try:
            build.build(library, build.zig(), target)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(error.stderr) from error
        set_tag(build_data, build.TARGETS[target])
        build_data["force_include"][str(library)] = f"gptx/ort/{library.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if folder := getattr(self, "folder", None):
            folder.cleanup()


def set_tag(build_data: dict[str, Any], platform: str) -> None:
    build_data["tag"] = f"py3-none-{platform}"
    build_data["pure_python"] = False
