"""Compare the native kernels of all instruction sets, bit by bit, on random cases.

    python benchmarks/kernel_bits.py --cases 10000 --emulated-cases 1000

Plain C++ is the reference. Compared with it are

- the kernels that this processor has, in --cases cases;
- those of AVX-VNNI, emulated on AVX2, and of AVX-512, emulated by SIMDe (Debian's libsimde-dev);
- those of aarch64, under qemu-user and built by the package ziglang;
- what gptx chooses on older processors, under qemu-user. The choice itself is checked too.

Emulated ones run --emulated-cases cases, and are left out if their emulator is missing. The last
line is JSON; the program fails if a case differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "runtime" / "kernels"
sys.path.insert(0, str(KERNELS))

import build  # noqa: E402  # pyright: ignore[reportMissingImports]

ZIG = [sys.executable, "-m", "ziglang", "c++"]
SIMDE_HEADER = Path("/usr/include/simde/x86/avx512.h")
SIMDE = [*build.AVX2, "-O1", "-Wno-psabi"]
SIMDE += ["-include", str(ROOT / "benchmarks" / "avx512_emulated.h")]
AVX2_ALONE = [*build.AVX2, "-include", str(ROOT / "benchmarks" / "avxvnni_emulated.h")]
# What gptx must choose on processors that qemu imitates.
X86_PROCESSORS = {"Nehalem": "plain", "Haswell": "avx2"}
ARM_PROCESSORS = {"cortex-a53": "neon", "max": "neondot"}


@dataclass(frozen=True)
class Run:
    label: str
    command: list[str]  # kernel_bits, under an emulator where it needs one
    asked: str  # the kernels to run, or best
    expected: str  # the kernels that then run
    cases: int


def program(
    out: Path, command: list[str], sets: dict[str, list[str]], aim: list[str], only: str = ""
) -> str:
    """Compile kernel_bits.cpp with plain kernels and those of `sets`, or with `only` one kind."""
    needed = ["memory", "pack", "packed_file", "pool"]
    needed += [only] if only else ["choose", "kernels_plain", *sets]
    sources = [ROOT / "benchmarks" / "kernel_bits.cpp"]
    sources += [KERNELS / f"{name}.cpp" for name in needed]
    made = []
    for source in sources:
        made.append(str(out.with_suffix(f".{source.stem}.o")))
        flags = [*build.FLAGS, *sets.get(source.stem, []), *aim]
        if only and source.stem == "kernel_bits":
            flags.append(f"-DONLY=gptx_{only}")
        build.run([*command, *flags, "-c", str(source), "-o", made[-1]])
    build.run([*command, *aim, *made, "-o", str(out), "-lpthread", "-lm", "-ldl"])
    return str(out)


def runs(folder: Path, cases: int, emulated_cases: int) -> Iterator[Run]:
    """All that can run here. The first is the reference."""
    command = build.compiler()
    if command is None:
        sys.exit("kernel_bits: no C++ compiler")
    print("compiling for this processor", flush=True)
    here = program(folder / "here", command, build.X86, [])
    for name in ("plain", "avx2", "avxvnni", "avx512", "avx512vnni"):
        yield Run(name, [here], name, name, cases)
    if qemu := shutil.which("qemu-x86_64"):
        for processor, name in X86_PROCESSORS.items():
            on = [qemu, "-cpu", processor, here]
            yield Run(f"best on {processor}", on, "best", name, emulated_cases)
    else:
        print("no older x86 processors: qemu-x86_64 is missing")
    yield from emulated_x86(folder, command, emulated_cases)
    yield from emulated_arm(folder, emulated_cases)


def emulated_sets() -> dict[str, list[str]]:
    """The instruction sets that can be emulated on AVX2 here, with the flags that compile them."""
    sets = {"avxvnni": AVX2_ALONE}
    if SIMDE_HEADER.exists():
        return {**sets, "avx512": SIMDE, "avx512vnni": SIMDE}
    print("no emulated AVX-512: simde/x86/avx512.h is missing (libsimde-dev)")
    return sets


def emulated_x86(folder: Path, command: list[str], cases: int) -> Iterator[Run]:
    for name, flags in emulated_sets().items():
        print(f"compiling emulated {name}", flush=True)
        kernels = f"kernels_{name}"
        path = program(folder / name, command, {kernels: flags}, [], only=kernels)
        yield Run(f"{name} (emulated)", [path], name, name, cases)


def emulated_arm(folder: Path, cases: int) -> Iterator[Run]:
    qemu = shutil.which("qemu-aarch64")
    if not qemu or not importlib.util.find_spec("ziglang"):
        print("no aarch64: qemu-aarch64 or the package ziglang is missing")
        return
    print("compiling for aarch64", flush=True)
    sets = {**build.ARM, "kernels_neondot": [build.ZIG_DOTPROD]}
    there = program(folder / "arm", ZIG, sets, ["-target", "aarch64-linux-musl", "-static"])
    for name in ("plain", "neon", "neondot"):
        yield Run(f"aarch64 {name}", [qemu, "-cpu", "max", there], name, name, cases)
    for processor, name in ARM_PROCESSORS.items():
        on = [qemu, "-cpu", processor, there]
        yield Run(f"best on {processor}", on, "best", name, cases)


def hashes(run: Run) -> list[str] | None:
    """A line for each case; None if the processor lacks the kernels."""
    command = [*run.command, run.asked, str(run.cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        return None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr}")
    name, *lines = done.stdout.splitlines()
    if name != run.expected:
        raise RuntimeError(f"{run.label}: gptx chose {name}, not {run.expected}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--emulated-cases", type=int, default=100)
    given = parser.parse_args()
    reference: list[str] = []
    result: dict[str, dict[str, int | list[int]]] = {}
    most = max(given.cases, given.emulated_cases)
    with tempfile.TemporaryDirectory() as folder:
        for run in runs(Path(folder), most, given.emulated_cases):
            lines = hashes(run)
            if lines is None:
                print(f"{run.label:30} not run: this processor lacks it", flush=True)
                continue
            reference = reference or lines
            differ = [n for n, (a, b) in enumerate(zip(lines, reference)) if a != b]
            result[run.label] = {"cases": len(lines), "differ": len(differ), "first": differ[:5]}
            print(f"{run.label:30} {len(differ)} of {len(lines)} cases differ", flush=True)
    print(json.dumps(result))
    if any(one["differ"] for one in result.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
