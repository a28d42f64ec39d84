"""Run the native kernels and their thread pool under the sanitizers of GCC or Clang.

    python benchmarks/kernel_sanitizers.py --cases 500 --jobs 5000

First jobs from four threads at once, with the thread sanitizer, and the jobs of children of fork,
without it: it cannot follow them. Then the random cases of kernel_bits.cpp, with the address and
the undefined-behaviour sanitizer: plain, AVX2, and AVX-VNNI and AVX-512 as kernel_bits.py emulates
them. The first report of a sanitizer ends the run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from kernel_bits import KERNELS, ROOT, build, emulated_sets, program

LINES = ["-g", "-O1", "-fno-omit-frame-pointer"]  # so that a report names lines
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", *LINES]
THREADS = ["-fsanitize=thread", *LINES]


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr}")


def check_pool(folder: Path, command: list[str], jobs: int) -> None:
    sources = [str(ROOT / "benchmarks" / "pool_threads.cpp"), str(KERNELS / "pool.cpp")]
    for name, flags in {"threads": THREADS, "fork": LINES}.items():
        pool = str(folder / name)
        build.run([*command, *build.FLAGS, *flags, *sources, "-o", pool, "-lpthread"])
        run([pool, str(jobs), name])


def instruction_sets() -> dict[str, list[str]]:
    """The kernels that can run here, with the flags that compile them."""
    sets: dict[str, list[str]] = {"plain": []}
    if system_has("avx2"):
        sets |= {"avx2": build.AVX2, **emulated_sets()}
    return sets


def system_has(feature: str) -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and feature in info.read_text().split()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=500, help="for each instruction set")
    parser.add_argument("--jobs", type=int, default=5000, help="for each of four threads")
    given = parser.parse_args()
    command = build.compiler()
    if command is None or "ziglang" in command:
        sys.exit("sanitizers need GCC or Clang")
    with tempfile.TemporaryDirectory() as folder:
        check_pool(Path(folder), command, given.jobs)
        print("pool         clean", flush=True)
        sets = instruction_sets()
        for name, flags in sets.items():
            kernels = f"kernels_{name}"
            at = Path(folder) / name
            path = program(at, command, {kernels: flags}, ADDRESS, only=kernels)
            run([path, name, str(given.cases)])
            print(f"{name:12} clean", flush=True)
    clean = ["pool", *sets]
    print(json.dumps({"cases": given.cases, "jobs": given.jobs, "clean": clean}))


if __name__ == "__main__":
    main()
