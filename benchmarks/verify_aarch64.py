"""Run `gptx verify` on aarch64, under qemu-user.

WHEEL is gptx's for aarch64. Without ARTIFACT, the model that ships with gptx is verified. Debian's
arm64 packages of Python and the wheels of gptx's dependencies are downloaded to --folder, once:

    dpkg --add-architecture arm64 && apt-get update && apt-get install qemu-user
    pip install -e '.[wheels]' && python .ci/wheels.py dist aarch64-linux-gnu.2.28
    python benchmarks/verify_aarch64.py dist/*aarch64.whl

Each proof runs twice: with the kernels for NEON with dotprod, and without. The program fails if a
proof fails, or if the native logits are not identical to those in the certificate.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

PYTHON = ["python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"]
LIBRARIES = ["libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libssl3", "libffi8"]
LIBRARIES += ["libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1", "libcrypt1"]
# Kernels, and a processor of qemu's for which gptx chooses them.
PROCESSORS = {"neondot": "max", "neon": "cortex-a72"}
# ONNX Runtime reads these files and ends in a crash if they describe an x86 processor. qemu looks
# into its root folder first.
FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics cpuid"
PROCESSOR = """processor\t: {number}
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""


def make_root(root: Path) -> None:
    """Debian's Python for arm64, and files that describe two processors."""
    packages = root.parent / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    names = [f"{name}:arm64" for name in [*PYTHON, *LIBRARIES]]
    subprocess.run(["apt-get", "download", *names], check=True, cwd=packages)
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    cpus = root / "sys/devices/system/cpu"
    for number in range(2):
        (cpus / f"cpu{number}").mkdir(parents=True)
    for name in ("possible", "present"):
        (cpus / name).write_text("0-1\n")
    (root / "proc").mkdir()
    text = "".join(PROCESSOR.format(number=n, features=FEATURES) for n in range(2))
    (root / "proc/cpuinfo").write_text(text)


def install(wheel: Path, site: Path) -> None:
    """gptx's wheel, ONNX Runtime and what both need."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--upgrade", "--target", str(site)]
    command += ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
    for glibc in (28, 27, 17):
        command += ["--platform", f"manylinux_2_{glibc}_aarch64"]
    command += ["--platform", "manylinux2014_aarch64"]
    subprocess.run([*command, str(wheel), "onnxruntime>=1.31"], check=True)


def verify(folder: Path, artifact: str | None, kernels: str) -> bool:
    """Print what `gptx verify` says; True if it says that the bits are the same."""
    root = folder / "root"
    command = ["qemu-aarch64", "-cpu", PROCESSORS[kernels], "-L", str(root)]
    command += [str(root / "usr/bin/python3.11"), "-m", "gptx", "verify"]
    environment = {"PYTHONPATH": str(folder / "site"), "GPTX_KERNELS": kernels, "PATH": "/usr/bin"}
    print(f"{artifact or 'the default model'}, {kernels}:", flush=True)
    start = time.monotonic()
    run = subprocess.run(
        [*command, artifact] if artifact else command,
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(f"{run.stdout}{time.monotonic() - start:.0f} s", flush=True)
    return run.returncode == 0 and "identical to the bit" in run.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("artifacts", nargs="*", metavar="ARTIFACT")
    parser.add_argument("--folder", type=Path, default=Path("aarch64"))
    given = parser.parse_args()
    folder = given.folder.resolve()
    if not (folder / "root").exists():
        make_root(folder / "root")
    install(given.wheel, folder / "site")
    done = [verify(folder, one, name) for one in given.artifacts or [None] for name in PROCESSORS]
    sys.exit(not all(done))


if __name__ == "__main__":
    main()
