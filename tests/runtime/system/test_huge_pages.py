"""Weights move into huge pages if the kernel can do it; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import gptx
from gptx.ort import native
from gptx.system import huge_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's huge pages")
SIZE = 2 << 20

RUN = """
import re, sys, threading
from pathlib import Path
import gptx
from gptx.system import huge_pages
if len(sys.argv) > 1:
    huge_pages._SETTING = Path(sys.argv[1])
moving = lambda: [thread for thread in threading.enumerate() if thread.name == "gptx-huge-pages"]
started = threading.Thread.start
names = []
def start(thread):
    if thread.name == "gptx-huge-pages":
        names.append(thread.name)
    started(thread)
threading.Thread.start = start
model = gptx.load()
with model.session() as session:
    for _ in range(huge_pages.MOVE_AFTER - 1):
        session.feed([[1]])
    assert not names
    before = session.feed([[1]])
    for thread in moving():
        thread.join()
    session.rewind([huge_pages.MOVE_AFTER - 1])
    assert (session.feed([[1]]) == before).all()
memory = Path("/proc/self/smaps_rollup").read_text()
print(len(names), re.search(r"AnonHugePages: +(\\d+)", memory)[1])
"""


def run(*args: str | Path) -> tuple[int, int]:
    """Run the default model MOVE_AFTER times. Returns threads started, and kB in huge pages.

    It runs on ONNX Runtime's operators; native ones ask for huge pages when they are loaded.
    """
    command = [sys.executable, "-c", RUN, *map(str, args)]
    environment = {**os.environ, native.VARIABLE: "none"}
    threads, kilobytes = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env=environment
    ).stdout.split()
    return int(threads), int(kilobytes)


def setting(folder: Path, modes: str) -> Path:
    (folder / "enabled").write_text(modes + "\n")
    (folder / "hpage_pmd_size").write_text(f"{SIZE}\n")
    return folder


def kernel_moves() -> bool:
    """True if this kernel collapses pages when asked, and only then.

    WSL, gVisor and kernels before 6.1 do not.
    """
    modes = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not modes.exists() or "[madvise]" not in modes.read_text():
        return False
    memory = mmap.mmap(-1, 4 * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"x" * (4 * SIZE))
    page = -(-ctypes.addressof(ctypes.c_char.from_buffer(memory)) // SIZE) * SIZE
    return ctypes.CDLL(None).madvise(ctypes.c_void_p(page), ctypes.c_size_t(SIZE), 25) == 0


@pytest.mark.skipif(not kernel_moves(), reason="this kernel moves nothing into huge pages")
def test_weights_move_once_a_model_is_used() -> None:
    threads, kilobytes = run()
    assert threads == 1 and kilobytes >= SIZE // 1024


@pytest.mark.parametrize("modes", ["always madvise [never]", None])
def test_without_huge_pages_nothing_happens(modes: str | None, tmp_path: Path) -> None:
    assert run(setting(tmp_path, modes) if modes else tmp_path)[0] == 0


def test_adjust_memory_false_leaves_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[tuple[Path, ...]] = []
    monkeypatch.setattr(
        "gptx.ort.open_sessions.trim_memory", lambda *folders: released.append(folders)
    )
    monkeypatch.setattr("gptx.system.huge_pages.MOVE_AFTER", 1)
    collapsed: list[object] = []
    monkeypatch.setattr("gptx.system.huge_pages._collapse", collapsed.append)
    for adjust_memory in (False, True):
        with gptx.load(threads=1, adjust_memory=adjust_memory) as model, model.session() as session:
            session.feed([[1]])
        for thread in threading.enumerate():
            if thread.name == "gptx-huge-pages":
                thread.join()
        assert bool(released) == adjust_memory
        if not adjust_memory:
            assert not collapsed


def test_only_new_and_whole_pages_are_moved() -> None:
    now, before = [(0x1FF000, 0xA00000), (0xC00000, 0xD00000)], [(0x400000, 0x401000)]
    pages = list(huge_pages._new_pages(now, before, SIZE))
    assert pages == [(0x200000, 0x400000), (0x600000, 0x800000), (0x800000, 0xA00000)]
    assert list(huge_pages._joined(iter(pages))) == [(0x200000, 0x400000), (0x600000, 0xA00000)]
    many = [(n * SIZE, (n + 1) * SIZE) for n in range(huge_pages._AT_ONCE + 1)]
    assert list(huge_pages._joined(iter(many))) == [(0, many[-2][1]), many[-1]]


def test_pages_that_are_not_resident_are_left_alone() -> None:
    memory = mmap.mmap(-1, 6 * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    page = -(-start // SIZE) * SIZE
    pages = [(page + n * SIZE, page + (n + 1) * SIZE) for n in range(4)]
    memory[page - start + SIZE : page - start + 2 * SIZE] = b"x" * SIZE
    assert list(huge_pages._resident(pages)) == pages[1:2]
