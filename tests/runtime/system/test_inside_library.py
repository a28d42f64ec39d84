"""The process ends, or is forked, while other threads compute: it neither aborts nor hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builders.tiny_artifact import write_artifact

WAIT = 30.0  # seconds until a test gives up
USES = {
    "generate": "list(model.stream('the cat', max_new_tokens=19_000, on_token=begun))",
    "submit": "model.submit('the cat', max_new_tokens=19_000, on_token=begun).result()",
    "sleep in a callback": "model.generate('a', on_token=lambda *_: (begun(), time.sleep(999)))",
    "feed": "\n        ".join(
        ("session = model.session()", "while True: session.feed([[1, 2, 3]] if begun() else 0)")
    ),
    "load": "begun(); [gptx.load(path, threads=1) for _ in range(999)]",
}


@pytest.mark.parametrize("use", USES)
def test_the_process_ends(use: str, tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", n_ctx=20_000, eos=[])
    code = f"""
import threading, time
import gptx
path = {str(folder)!r}
model, inside = gptx.load(path, threads=1), threading.Event()
def begun(*_):
    inside.set()
    return True
def work():
    while True:
        {USES[use]}
threading.Thread(target=work, daemon=True).start()
inside.wait()
time.sleep(0.05)
"""
    began = time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT
    )
    assert found.returncode == 0, found.stderr
    assert time.perf_counter() - began < WAIT / 2


def output_of(code: str) -> str:
    """What a process prints. It must end, without an error."""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=2 * WAIT
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("when", ["before", "behind"])
def test_the_main_thread_still_computes_when_the_process_ends(when: str, tmp_path: Path) -> None:
    """when: the app registers its handler before or behind gptx, so it runs behind or before."""
    folder = write_artifact(tmp_path / "a", n_ctx=2000, eos=[])
    code = f"""
import atexit, threading, time
def last():
    print(model.generate("the cat", max_new_tokens=1500, temperature=0).token_ids == expected)
def work():
    while True:
        try:
            model.generate("the dog", max_new_tokens=1000, temperature=0)
        except gptx.GptxError:
            time.sleep(0.1)
{"atexit.register(last)" if when == "before" else ""}
import gptx
{"atexit.register(last)" if when == "behind" else ""}
model = gptx.load({str(folder)!r}, threads=1, max_rows=3)
expected = model.generate("the cat", max_new_tokens=1500, temperature=0).token_ids
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
"""
    assert output_of(code) == "True\n"


def test_the_process_ends_while_a_grammar_is_compiled(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    folder = write_artifact(tmp_path / "a")
    code = f"""
import asyncio, sys, gptx
model = gptx.load({str(folder)!r}, threads=1)
pattern = "^[a-f]{{1,%d}}(x|y)*$"
fields = {{str(n): {{"type": "string", "pattern": pattern % (n + 3)}} for n in range(150)}}
call = model.generate_async("x", json_schema={{"properties": fields}}, max_new_tokens=3)
async def main():
    try:
        await asyncio.wait_for(call, DELAY)
    except asyncio.TimeoutError:
        pass
asyncio.run(main())
"""
    for delay in ("0.03", "0.06", "0.09"):
        output_of(code.replace("DELAY", delay))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("other", ["generates", "holds the engine's lock"])
def test_a_fork_while_another_thread_uses_the_model(other: str, tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "a", n_ctx=20_000, eos=[])
    code = f"""
import os, signal, threading, time, gptx
model = gptx.load({str(folder)!r}, threads=1, max_rows=2)
options = dict(max_new_tokens=3, temperature=0)
expected = model.generate("x y", **options).token_ids
def generates():
    while True:
        model.generate("the cat", max_new_tokens=1500)
def holds():
    with model.engine._state.lock:
        time.sleep(99)
use = generates if {other!r} == "generates" else holds
threading.Thread(target=use, daemon=True).start()
time.sleep(0.2)
codes = []
for _ in range(10):
    child = os.fork()
    if not child:
        signal.alarm(10)
        os._exit(0 if model.generate("x y", **options).token_ids == expected else 1)
    codes.append(os.waitpid(child, 0)[1])
print(codes == [0] * 10)
os._exit(0) if use is holds else None
"""
    assert output_of(code).endswith("True\n")
