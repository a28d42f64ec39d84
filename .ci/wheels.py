"""Build the wheels of gptx for all systems on one machine: `python .ci/wheels.py OUT [TARGET ...]`.

Each TARGET is a name in runtime/kernels/build.py, or `none`: the wheel without native operators.
The library in each wheel is inspected before the wheel appears in OUT. Needs `pip install -e
'.[wheels]'`. The first build for Windows compiles zig's C library: minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "runtime" / "kernels"))

import build  # noqa: E402  # pyright: ignore[reportMissingImports]

try:
    import hatchling  # noqa: F401
    import symbols  # pyright: ignore[reportMissingImports]
    import ziglang  # noqa: F401  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    sys.exit(f"{error}: pip install -e '.[wheels]'")


def build_wheel(target: str, folder: Path) -> Path:
    """Build one wheel into `folder`. Raises CalledProcessError, with hatchling's words."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    environment = {**os.environ, "GPTX_BUILD_KERNELS": target}
    subprocess.run(
        command, check=True, cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def inspect_wheel(wheel: Path, target: str, folder: Path) -> list[str]:
    """Print the symbols of the library in a wheel; returns what is wrong."""
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if "gptx_kernels" in name]
        expected = [] if target == "none" else [f"gptx/ort/{build.library_name(target)}"]
        if libraries != expected:
            return [f"holds {libraries}, expected {expected}"]
        if not expected:
            return []
        found = symbols.read_symbols(Path(archive.extract(libraries[0], folder)))
    print(f"  exports {' '.join(sorted(found.exports))}")
    print(f"  imports {' '.join(sorted(found.imports))}")
    print(f"  needs   {' '.join(sorted(found.libraries))}")
    return found.problems(glibc=build.GLIBC)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    names = [*build.TARGETS, "none"]
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all: {', '.join(names)}")
    given = parser.parse_args()
    if unknown := [target for target in given.targets if target not in names]:
        parser.error(f"{unknown[0]}: expected {', '.join(names)}")
    given.out.mkdir(parents=True, exist_ok=True)
    for target in given.targets or names:
        print(f"{target} ...", flush=True)
        start = time.monotonic()
        # beside OUT's wheels, so that the finished wheel can be renamed
        with tempfile.TemporaryDirectory(prefix=".building-", dir=given.out) as folder:
            try:
                wheel = build_wheel(target, Path(folder))
            except subprocess.CalledProcessError as error:
                sys.exit(f"{error.stdout}\n{target}: the wheel was not built")
            if problems := inspect_wheel(wheel, target, Path(folder)):
                sys.exit(f"{target}: {wheel.name} {'; '.join(problems)}")
            wheel.replace(given.out / wheel.name)
        print(f"  {wheel.name}, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
