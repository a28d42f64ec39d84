"""This machine's processor and memory.

Gives the processor's name, its features, its cores and the bytes of memory. The features decide how
fast and how exactly ONNX Runtime computes. Sources: /proc (Linux), sysctl (macOS), the registry and
kernel32 (Windows). Nothing here raises: a fact that the system does not tell is left out.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

# gptx's name of a feature: its name in /proc/cpuinfo, and in sysctl on an Intel Mac. Names are
# compared in lower case, without underscores and dots.
_X86 = {
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx_vnni": "avxvnni",
    "avx512": "avx512f",
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "amx_int8": "amxint8",
    "amx_bf16": "amxbf16",
}
_ARM = {
    "neon": "asimd",
    "fp16": "asimdhp",
    "dotprod": "asimddp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
_ARM |= {"sve2": "sve2", "sme": "sme"}
_MAC_ARM = {"fp16": "FP16", "dotprod": "DotProd", "i8mm": "I8MM", "bf16": "BF16", "sme": "SME"}
# The numbers that Windows' IsProcessorFeaturePresent takes.
_WINDOWS = {"avx": 39, "avx2": 40, "avx512": 41, "dotprod": 43}

# Cores of edge boards and clouds, by (CPU implementer, CPU part) in /proc/cpuinfo.
_ARM_PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD49): "Neoverse N2",
    (0x41, 0xD4F): "Neoverse V2",
    (0xC0, 0xAC3): "Ampere-1",
}


@cache
def cpu_name() -> str:
    """The processor's name, as in "Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)"."""
    if sys.platform == "linux":
        return name_in_cpuinfo(_read(_CPUINFO), board=_read(_BOARD).rstrip("\0\n")) or _fallback()
    if sys.platform == "darwin":
        return _tidy(_sysctl("machdep.cpu.brand_string")) or _fallback()
    return _tidy(_windows_name()) or _fallback()


@cache
def _features() -> tuple[str, ...]:
    if sys.platform == "linux":
        return tuple(features_in_cpuinfo(_read(_CPUINFO)))
    if sys.platform == "darwin":
        if platform.machine() == "arm64":
            return (
                "neon",
                *(
                    word
                    for word, name in _MAC_ARM.items()
                    if _sysctl(f"hw.optional.arm.FEAT_{name}") == "1"
                ),
            )
        flags = _sysctl("machdep.cpu.features") + " " + _sysctl("machdep.cpu.leaf7_features")
        return tuple(_named(_X86, flags.replace("AVX1.0", "AVX")))
    return tuple(word for word, number in _WINDOWS.items() if _windows_has(number))


def cpu_features() -> list[str]:
    """The features that every core has: names from _X86 or _ARM, in their order."""
    return list(_features())


def int8_saturates(features: list[str]) -> bool:
    """True if the CPU adds products of uint8 and int8 in 16 bits, which clips large sums.

    That is so on x86 with AVX2 and without VNNI (docs/explanation/cpu-kernels.md).
    """
    return "avx2" in features and not {"avx_vnni", "avx512_vnni", "amx_int8"}.intersection(features)


def cpu_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory in all, and bytes that are free now; None if the system does not say."""
    if sys.platform == "linux":
        sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE))
        total, free = (
            int(sizes[key]) * 1024 if key in sizes else None for key in ("MemTotal", "MemAvailable")
        )
        limit = _read(_CONTAINER_LIMIT).strip()  # "max" if the container has no limit
        if limit.isdigit() and total is not None:
            total = min(total, int(limit))
            free = min(free or total, total)
        return total, free
    if sys.platform == "darwin":
        size = _sysctl("hw.memsize")
        return (int(size) if size.isdigit() else None), None
    return _windows_memory()


def name_in_cpuinfo(text: str, *, board: str = "") -> str:
    """The processor's name from the text of /proc/cpuinfo.

    On ARM there is no name in it, so the board and the kinds of cores are named.
    """
    fields = dict(re.findall(r"^([^\n:]+?)[ \t]*:[ \t]*(.*)$", text, re.MULTILINE))
    name = _tidy(fields.get("model name", "") or fields.get("uarch", ""))
    # Virtual machines may hide the exact model: "AMD EPYC".
    if name and not re.search(r"\d", name) and "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    if name and not board:
        return name
    cores = name or " + ".join(_arm_cores(text))
    return f"{board} ({cores})" if board and cores else board or cores


def features_in_cpuinfo(text: str) -> list[str]:
    """The features that every core in the text of /proc/cpuinfo has.

    Big and little cores of one processor may differ.
    """
    lines = [
        line.split() for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    ]
    if not lines:
        return []
    common = " ".join(set(lines[0]).intersection(*lines[1:]))
    return _named(_ARM if re.search(r"^Features\s*:", text, re.MULTILINE) else _X86, common)


def _named(table: dict[str, str], flags: str) -> list[str]:
    """gptx's names of the features in `flags`, a text such as "sse avx2"."""
    have = set(re.sub(r"[_.]", "", flags.lower()).split())
    return [word for word, flag in table.items() if flag in have]


def _arm_cores(text: str) -> list[str]:
    makers = re.findall(r"^CPU implementer\s*:\s*(\w+)", text, re.MULTILINE)
    parts = re.findall(r"^CPU part\s*:\s*(\w+)", text, re.MULTILINE)
    pairs = dict.fromkeys(zip(makers, parts))  # unique, in order
    return [
        _ARM_PARTS.get((int(maker, 16), int(part, 16)), f"ARM core {maker}:{part}")
        for maker, part in pairs
    ]


def _tidy(name: str) -> str:
    name = re.sub(r"\((R|TM|r|tm)\)|\bCPU\b|@.*$", " ", name)
    return " ".join(name.split())


def _fallback() -> str:
    return platform.processor() or platform.machine() or "unknown processor"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


if sys.platform == "win32":
    import ctypes
    import winreg

    def _windows_name() -> str:
        try:
            with winreg.OpenKey(
                winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
            ) as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0])
        except OSError:
            return ""

    def _windows_has(number: int) -> bool:
        return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(number))

    class _MemoryStatus(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)]
        _fields_ += [
            (name, ctypes.c_ulonglong) for name in ("total", "free", "_3", "_4", "_5", "_6", "_7")
        ]

    def _windows_memory() -> tuple[int | None, int | None]:
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            return None, None
        return status.total, status.free
else:

    def _windows_name() -> str:
        return ""

    def _windows_has(number: int) -> bool:
        return False

    def _windows_memory() -> tuple[int | None, int | None]:
        return None, None
