"""Build the library of native operators when gptx is installed, if there is a C++ compiler.

A build that fails ends in a wheel without the library, which runs on ONNX Runtime's operators.
GPTX_BUILD_KERNELS=require makes it an error, GPTX_BUILD_KERNELS=none leaves the library out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path(__file__).parent / "runtime" / "kernels"
sys.path.insert(0, str(KERNELS))

import build  # noqa: E402  (runtime/kernels/build.py)


class KernelsHook(BuildHookInterface):
    """hatchling calls `dependencies` and `initialize` for each wheel and editable install."""

    def dependencies(self) -> list[str]:
        """The compiler of the package ziglang, where there is no other."""
        wanted = os.environ.get("GPTX_BUILD_KERNELS") != "none"
        return ["ziglang"] if wanted and build.compiler() is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        mode = os.environ.get("GPTX_BUILD_KERNELS", "")
        if mode == "none":
            return
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
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["pure_python"] = False
        build_data["artifacts"].append(f"/{library.relative_to(self.root).as_posix()}")
