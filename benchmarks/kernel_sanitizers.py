"""Run the native kernels and their thread pool under the sanitizers of GCC or Clang.

    python benchmarks/kernel_sanitizers.py --cases 500 --jobs 5000

First the random cases of kernel_bits.cpp, for each instruction set that this processor has, with
the address and the undefined-behaviour sanitizer. Then jobs from four threads at once, with the
thread sanitizer. The first report of a sanitizer ends the run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from kernel_bits import KERNELS, ROOT, build, program

LINES = ["-g", "-O1", "-fno-omit-frame-pointer"]  # so that a report names lines
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", *LINES]
THREADS = ["-fsanitize=thread", *LINES]


def run(command: list[str]) -> bool:
    """True if the program ran; False if this processor lacks its kernels. Exits on a report."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 2):
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr}")
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=500, help="for each instruction set")
    parser.add_argument("--jobs", type=int, default=5000, help="for each of four threads")
    given = parser.parse_args()
    command = build.compiler()
    if command is None or "ziglang" in command:
        sys.exit("sanitizers need GCC or Clang")
    result: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        kernels = program(Path(folder) / "kernels", command, build.X86, ADDRESS)
        for name in ("plain", "avx2", "avx512", "avx512vnni"):
            ran = run([str(kernels), name, str(given.cases)])
            result[name] = "clean" if ran else "not run: this processor lacks it"
            print(f"{name:12} {result[name]}", flush=True)
        pool = Path(folder) / "pool"
        sources = [str(ROOT / "benchmarks" / "pool_threads.cpp"), str(KERNELS / "pool.cpp")]
        build.run([*command, *build.FLAGS, *THREADS, *sources, "-o", str(pool), "-lpthread"])
        run([str(pool), str(given.jobs)])
        result["pool"] = "clean"
    print(f"{'pool':12} clean")
    print(json.dumps({"cases": given.cases, "jobs": given.jobs, "result": result}))


if __name__ == "__main__":
    main()
