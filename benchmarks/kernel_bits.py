"""Compare the native kernels of all instruction sets, bit by bit, on random cases.

    python benchmarks/kernel_bits.py --cases 10000

Runs what this processor has, and the kernels of aarch64 under qemu-user if the package ziglang and
qemu-aarch64 are installed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "runtime" / "kernels"
sys.path.insert(0, str(KERNELS))

import build  # noqa: E402  # pyright: ignore[reportMissingImports]

ZIG = [sys.executable, "-m", "ziglang", "c++"]


def program(out: Path, command: list[str], sets: dict[str, list[str]], aim: list[str]) -> Path:
    """Compile kernel_bits.cpp with the kernels of these instruction sets."""
    sources = [ROOT / "benchmarks" / "kernel_bits.cpp"]
    sources += [KERNELS / f"{name}.cpp" for name in ("choose", "pool", "kernels_plain", *sets)]
    made = []
    for source in sources:
        made.append(str(out.with_suffix(f".{source.stem}.o")))
        flags = [*build.FLAGS, *sets.get(source.stem, []), *aim]
        build.run([*command, *flags, "-c", str(source), "-o", made[-1]])
    build.run([*command, *aim, *made, "-o", str(out), "-lpthread", "-lm"])
    return out


def hashes(command: list[str], cases: int) -> list[str] | None:
    """One line for each hundred cases; None if the processor lacks the instruction set."""
    done = subprocess.run([*command, str(cases)], capture_output=True, text=True, check=False)
    if done.returncode == 2:
        return None
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
    return done.stdout.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    cases = parser.parse_args().cases
    found: dict[str, list[str] | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = build.compiler()
        assert command is not None, "no C++ compiler"
        here = program(Path(folder) / "here", command, build.X86, [])
        for name in ("plain", "avx2", "avx512", "avx512vnni"):
            found[name] = hashes([str(here), name], cases)
        if shutil.which("qemu-aarch64"):
            aim = ["-target", "aarch64-linux-musl", "-static"]
            arm = {**build.ARM, "kernels_neondot": [build.ZIG_DOTPROD]}
            there = program(Path(folder) / "arm", ZIG, arm, aim)
            for name in ("neon", "neondot", "plain"):
                found[f"aarch64 {name}"] = hashes(["qemu-aarch64", str(there), name], cases)
    expected = found["plain"]
    assert expected is not None
    result = {}
    for name, lines in found.items():
        result[name] = (
            "not run: this processor lacks it"
            if lines is None
            else sum(a != b for a, b in zip(lines, expected))
        )
        print(f"{name:16} {result[name]}")
    print(json.dumps({"cases": cases, "hundreds that differ": result}))


if __name__ == "__main__":
    main()
