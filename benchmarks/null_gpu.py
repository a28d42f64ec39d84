"""Find out, without a GPU, what ONNX Runtime does with an artifact on CUDA.

It shows which nodes run on the CPU, whether a decode step is captured as a CUDA graph and replayed,
and the time that gptx and ONNX Runtime themselves take. No kernel computes, so logits are noise.

    python -m venv cuda && cuda/bin/pip install onnxruntime-gpu==1.31.1
    cuda/bin/pip install --no-deps -e .
    cuda/bin/pip install numpy tokenizers click rich jinja2 safetensors
    cuda/bin/python benchmarks/null_gpu.py smollm2-fp16

Libraries in place of CUDA's are compiled with gcc, from null_gpu.c and the names of the functions
that onnxruntime-gpu imports. NVIDIA's own libraries must not be installed. Linux on x86-64 only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gptx
from gptx.artifact.manifest import read_manifest
from gptx.bench.machine import lines, machine
from gptx.errors import GptxError
from gptx.ort.device import CPU
from gptx.ort.library import library_folder

HERE = Path(__file__).parent
FOREIGN = re.compile(
    r" U ((?:__)?cuda\w+|cublas\w+|curand\w+|cufft\w+|cu[A-Z]\w+)(?:@(lib\S+))?$", re.MULTILINE
)
DRIVER = "libcuda.so.1"  # its functions have no version names
NEEDED = (DRIVER, "libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10")
STEPS = 200
THREADS = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    path = parser.parse_args().artifact
    if "NULL_GPU_REPORT" in os.environ:
        try:
            observe(path)
        except GptxError as error:
            sys.exit(f"null_gpu: {error}")
        return
    print(*lines(machine("onnxruntime-gpu", "onnxruntime")), sep="\n")
    with tempfile.TemporaryDirectory(prefix="null-gpu-") as folder:
        build(Path(folder))
        report = Path(folder) / "report.json"
        environment = os.environ | {"LD_LIBRARY_PATH": folder, "NULL_GPU_REPORT": str(report)}
        status = subprocess.run([sys.executable, __file__, str(path)], env=environment).returncode
        print(report.read_text().strip() if report.exists() else "the libraries were not loaded")
    sys.exit(status)


def build(folder: Path) -> None:
    """Compile the libraries that onnxruntime-gpu's CUDA provider loads to `folder`."""
    provider = library_folder() / "libonnxruntime_providers_cuda.so"
    asked = subprocess.run(
        ["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True
    ).stdout
    names = [(name, library or DRIVER) for name, library in FOREIGN.findall(asked)]
    written = set(re.findall(r"\b((?:__)?cuda\w+)\(", (HERE / "null_gpu.c").read_text()))
    for library in NEEDED:
        stubs = [stub(name) for name, its in names if its == library and name not in written]
        sources = [HERE / "null_gpu.c"] if "cudart" in library else []
        compile_library(folder, library, "\n".join(stubs), sources)
    cudnn = re.findall(
        rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes()
    )  # looked up at run time, by name
    compile_library(
        folder, "libcudnn.so.9", "\n".join(stub(name.decode()) for name in sorted(set(cudnn))), []
    )
    (folder / "libcudnn.so").symlink_to("libcudnn.so.9")


def stub(name: str) -> str:
    """C code of a function that reports success, and returns a handle or a size if it must."""
    if "Create" in name:
        return f"int {name}(void **handle) {{ static char made[64]; *handle = made; return 0; }}"
    if re.search(r"Reduction\w+Size", name):
        arguments = "void *a, void *b, void *c, void *d, unsigned long *size"
        return f"int {name}({arguments}) {{ *size = 1024; return 0; }}"
    if "Heuristic" in name:
        arguments = ", ".join(f"void *a{i}" for i in range(7))
        return (
            f"int {name}({arguments}, int n, void *found, int *count) {{ *count = 1; return 0; }}"
        )
    if "GetVersion" in name:
        return f"unsigned long {name}(void) {{ return 91000; }}"
    if "String" in name or "StatusName" in name:
        return f'const char *{name}(int status) {{ return "no GPU"; }}'
    return f"int {name}() {{ return 0; }}"


def compile_library(folder: Path, library: str, code: str, sources: list[Path]) -> None:
    written, versions = folder / f"{library}.c", folder / f"{library}.map"
    written.write_text(code + "\n")
    versions.write_text(f"{library} {{ global: *; }};\n")
    versioned = [] if library == DRIVER else [f"-Wl,--version-script={versions}"]
    options = ["-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{library}", *versioned]
    subprocess.run(["gcc", *options, written, *sources, "-o", folder / library], check=True)


def observe(path: Path) -> None:
    """Run the model; in the process that loads these libraries."""
    manifest = read_manifest(path)
    with gptx.load(path, device="cuda") as model:
        nodes = Counter(
            node.op_type
            for part in model._opened().session.get_provider_graph_assignment_info()
            if part.ep_name == CPU
            for node in part.get_nodes()
        )
        print(f"{model.graph.relative_to(path)} on {model.provider}; on the CPU: {dict(nodes)}")
        if (
            manifest.cuda is None
        ):  # the graph would compute the number of logits, which would be noise
            print("only what has a graph for CUDA can be run further")
            return
        size = min(STEPS + 8, manifest.model.n_ctx)
        with model.session(1, size=size) as session:
            session.feed([[1, 2, 3, 4]])
            session.feed([[5]])
            began = time.perf_counter()
            for _ in range(size - 8):
                session.feed([[5]])
            took = (time.perf_counter() - began) / (size - 8)
        print(json.dumps({"microseconds a step": round(1e6 * took, 1), "steps": size - 7}))
        others = [gptx.load(path, device="cuda") for _ in range(6)]
        with ThreadPoolExecutor(THREADS) as pool:
            over = threading.Event()
            talks = [pool.submit(talk, model, rows, over) for rows in range(1, THREADS + 1)]
            try:
                for other in others:
                    time.sleep(0.05)
                    other.close()
            finally:
                over.set()
            for one in talks:
                one.result()
    print(
        f"{THREADS} threads with sessions of their own, while other models are closed:"
        " no call failed"
    )


def talk(model: gptx.Model, rows: int, over: threading.Event) -> None:
    for size in range(32, model.n_ctx):  # a new buffer size each time, whose step is captured
        if over.is_set():
            return
        with model.session(rows, size=size) as session:
            session.feed([[1, 2, 3]] * rows)
            for _ in range(16):
                session.feed([[5]] * rows)


if __name__ == "__main__":
    main()
