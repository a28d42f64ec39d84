"""The processor's name and features, read from /proc/cpuinfo of several machines."""

from __future__ import annotations

import os

import pytest

from gptx.system.cpu import (
    cpu_cores,
    cpu_features,
    cpu_name,
    features_in_cpuinfo,
    memory,
    name_in_cpuinfo,
)

XEON_FLAGS = (
    "fpu avx avx2 fma f16c avx512f avx512_vnni avx512_bf16 avx512_fp16 "
    "amx_bf16 amx_tile amx_int8 avx_vnni"
)
XEON = f"""processor\t: 0
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: {XEON_FLAGS}

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: {XEON_FLAGS}
"""
HIDDEN = "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2\n"
PI5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0b

Revision\t: d04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
BIG_LITTLE = """Features\t: fp asimd asimddp i8mm bf16 sve
CPU implementer\t: 0x41
CPU part\t: 0xd05
Features\t: fp asimd asimddp
CPU implementer\t: 0x41
CPU part\t: 0xfff
"""


@pytest.mark.parametrize(
    "text, board, name",
    [
        (XEON, "", "Intel Xeon Platinum 8481C"),
        (HIDDEN, "", "AMD EPYC (family 25, model 17)"),
        (PI5, "Raspberry Pi 5 Model B Rev 1.0", "Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)"),
        (BIG_LITTLE, "", "Cortex-A55 + ARM core 0x41:0xfff"),
        ("processor\t: 0\nisa\t\t: rv64imafdcv\nuarch\t\t: sifive,u74-mc\n", "", "sifive,u74-mc"),
        ("", "", ""),
    ],
)
def test_name(text: str, board: str, name: str) -> None:
    assert name_in_cpuinfo(text, board=board) == name


def test_features() -> None:
    assert " ".join(features_in_cpuinfo(XEON)) == (
        "avx avx2 fma f16c avx_vnni avx512 avx512_vnni avx512_bf16 avx512_fp16 amx_int8 amx_bf16"
    )
    assert features_in_cpuinfo(PI5) == ["neon", "fp16", "dotprod"]
    assert features_in_cpuinfo(BIG_LITTLE) == ["neon", "dotprod"]  # both cores have them
    assert features_in_cpuinfo("") == []


def test_this_machine() -> None:
    assert cpu_name()
    assert all(word == word.lower() and " " not in word for word in cpu_features())
    assert 1 <= cpu_cores() <= (os.cpu_count() or 1)
    total, free = memory()
    assert total is None or total > 2**26
    assert free is None or total is None or 0 < free <= total
