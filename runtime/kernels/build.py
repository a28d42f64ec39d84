"""Build gptx's operators for ONNX Runtime: `python runtime/kernels/build.py [OUT]`.

Compiles each file here with GCC, Clang or, if neither is there, the compiler of the package
ziglang, and links a library without the C++ standard library. `--target` builds for another
machine with ziglang: x86_64-linux-gnu.2.28, aarch64-linux-gnu.2.28, x86_64-macos,
aarch64-macos, x86_64-windows-gnu.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
COMMON = ["choose", "memory", "pack", "packed_file", "pool", "kernels_plain", "operators"]
COMMON += ["op_attention", "op_embed", "op_linear", "op_normalize", "softmax"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
# The files of each kind of processor, with the flags of their instruction sets.
X86 = {
    "kernels_avx2": AVX2,
    "kernels_avxvnni": [*AVX2, "-mavxvnni"],
    "kernels_avx512": AVX512,
    "kernels_avx512vnni": [*AVX512, "-mavx512vnni"],
}
# ziglang's name of each other machine, and the tag of a wheel for it.
TARGETS = {
    "x86_64-linux-gnu.2.28": "manylinux_2_28_x86_64",
    "aarch64-linux-gnu.2.28": "manylinux_2_28_aarch64",
    "x86_64-macos.11.0": "macosx_11_0_x86_64",
    "aarch64-macos.11.0": "macosx_11_0_arm64",
    "x86_64-windows-gnu": "win_amd64",
    "aarch64-windows-gnu": "win_arm64",
}
GLIBC = (2, 28)  # the version of the Linux targets
ZIG_DOTPROD = "-mcpu=generic+v8_2a+dotprod"  # zig's name of ARM's -march
ARM = {"kernels_neon": [], "kernels_neondot": ["-march=armv8.2-a+dotprod"]}
# Results must not depend on the compiler: no fused multiply-adds but those that are written.
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall"]
FLAGS += ["-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-fno-math-errno", "-Wextra"]
FLAGS += ["-Wno-missing-field-initializers", "-Wno-maybe-uninitialized"]
FLAGS += ["-g0"]  # zig writes debug information unasked


def library_name(target: str | None = None) -> str:
    """The library's file name on this system, or for a --target."""
    system = target or platform.system().lower()
    if "windows" in system:
        return "gptx_kernels.dll"
    apple = "macos" in system or "darwin" in system
    return "libgptx_kernels.dylib" if apple else "libgptx_kernels.so"


def compiler() -> list[str] | None:
    """The command of a C++ compiler; None if there is none."""
    for name in ("g++", "clang++"):
        if shutil.which(name):
            return [name]
    try:
        import ziglang  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        return None
    return zig()


def zig() -> list[str]:
    """The command of ziglang's C++ compiler, which builds for every target."""
    return [sys.executable, "-m", "ziglang", "c++"]


def aim_of(command: list[str], target: str | None) -> list[str]:
    """The flags of the machine to build for: any processor of its kind.

    ziglang builds for the processor that it runs on if nothing is said.
    """
    if target:
        return ["-target", target]
    return ["-mcpu=baseline"] if "ziglang" in command else []


def knows(command: list[str], flag: str) -> bool:
    """Whether the compiler takes `flag`."""
    asked = [*command, flag, "-x", "c++", "-E", os.devnull]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def build(out: Path, command: list[str], target: str | None = None) -> None:
    """Write the library to `out`.

    Raises CalledProcessError, with the compiler's words in stderr.
    """
    machine = (target or platform.machine()).lower()
    x86 = machine.startswith(("x86_64", "amd64"))
    sets = X86 if x86 else ARM if machine.startswith(("aarch64", "arm64")) else {}
    aim = aim_of(command, target)
    without: list[str] = []
    if x86 and not knows(command, "-mavxvnni"):  # GCC before 11, Clang before 12
        sets = {name: flags for name, flags in X86.items() if name != "kernels_avxvnni"}
        without = ["-DGPTX_WITHOUT_AVXVNNI"]
    with tempfile.TemporaryDirectory(prefix="gptx-kernels-") as folder:

        def compile_one(name: str) -> str:
            made = f"{folder}/{name}.o"
            flags = [*FLAGS, *aim, *without, *sets.get(name, [])]
            if "ziglang" in command and name == "kernels_neondot":
                flags[flags.index("-march=armv8.2-a+dotprod")] = ZIG_DOTPROD
            if name == "kernels_plain":
                flags += ["-O1"]  # the reference: slow in any case, and slow to compile
            run([*command, *flags, "-c", str(HERE / f"{name}.cpp"), "-o", made])
            return made

        with ThreadPoolExecutor() as threads:
            objects = list(threads.map(compile_one, [*COMMON, *sets]))
        whole = Path(folder) / out.name
        link = ["-shared", "-nostdlib++"] if "g++" not in command[0] else ["-shared"]
        system = (target or platform.system()).lower()
        libraries = [] if "windows" in system else ["-lpthread", "-lm"]
        libraries += ["-ldl", "-Wl,-z,defs"] if "linux" in system else []
        linker = ["gcc"] if command[0] == "g++" else command
        # with a bare name, because a library for macOS holds what -o says
        run([*linker, *link, *aim, *objects, "-o", whole.name, *libraries], folder)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(whole, out.with_suffix(".part"))
        out.with_suffix(".part").replace(out)


def run(command: list[str], folder: str | None = None) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--target")
    given = parser.parse_args()
    name = library_name(given.target)
    out = given.out or HERE.parent / "gptx" / "ort" / name
    command = compiler()
    if given.target:
        command = zig()
    if command is None:
        sys.exit("no C++ compiler: install gcc, clang or `pip install ziglang`")
    try:
        build(out, command, given.target)
    except subprocess.CalledProcessError as error:
        sys.exit(error.stderr)
    print(out)


if __name__ == "__main__":
    main()
