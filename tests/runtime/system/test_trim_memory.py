"""Memory that only loading needed is given back, and comes back from the file when it is read."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import gptx
from gptx.system.trim_memory import clean_mappings

WINDOW = [5, 9, 2, 7, 7, 1, 30, 40, 3, 8]

SMAPS = """\
55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]
Rss:                 132 kB
Anonymous:           132 kB
7f0000000000-7f0000100000 r--p 00000000 fe:00 11  /models/a b/onnx/model.onnx_data
Rss:                1024 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me
7f0000100000-7f0000200000 rw-p 00100000 fe:00 11  /models/a b/onnx/model.onnx_data
Anonymous:             4 kB
Swap:                  0 kB
7f0000200000-7f0000300000 rw-p 00200000 fe:00 11  /models/a b/onnx/model.onnx_data
Anonymous:             0 kB
Swap:                  8 kB
7f0000300000-7f0000400000 r--p 00000000 fe:00 12  /models/a b2/onnx/model.onnx_data
Anonymous:             0 kB
Swap:                  0 kB
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_weights_leave_memory_and_come_back(fp32: Path) -> None:
    model = gptx.load(fp32, threads=1)
    blocks = Path("/proc/self/smaps").read_text().split("VmFlags:")
    resident = [
        re.findall(r"^Rss: +(\d+)", block, re.M) for block in blocks if f"{fp32}/onnx/" in block
    ]
    # the embedding's file stays mapped, and none of it is in memory
    assert resident and all(size == ["0"] for size in resident)
    assert len(model.generate(WINDOW, max_new_tokens=4, min_new_tokens=4).token_ids) == 4


def test_only_clean_mappings_of_the_folder_are_dropped() -> None:
    assert list(clean_mappings(SMAPS, Path("/models/a b"))) == [(0x7F0000000000, 0x100000)]
    assert list(clean_mappings(SMAPS, Path("/models"))) == [
        (0x7F0000000000, 0x100000),
        (0x7F0000300000, 0x100000),
    ]
