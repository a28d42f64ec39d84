"""Measure training, in tokens per second: gptx's loop, nanoGPT's, and transformers.Trainer.

    python benchmarks/training.py gptx nanogpt trainer --shape char --threads 1

Each engine runs in a process of its own. It is given as NAME, NAME:compile (torch.compile) or
NAME:fp32 (instead of bf16 autocast); loops/ has one file per name. All train the same GPT-2 from
the same weights on the same batches with the same AdamW. Rounds alternate (A B C A B C ...). The
timing includes making batches. It leaves out loading, compiling, the first steps, and evaluation.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptx.bench.machine import lines, machine
from gptx.system.cpu import cpu_cores
from table import table
from tracked import tracked

LOOPS = Path(__file__).parent / "loops"
NAMES = sorted(file.stem.removesuffix("_loop") for file in LOOPS.glob("*_loop.py"))
PATIENCE = 600  # extra seconds for a process, for torch.compile and slow disks


@dataclass(frozen=True)
class Shape:
    model: dict[str, int]
    batch_size: int
    learning_rate: float
    warmup: int = 5


def shapes(device: str) -> dict[str, Shape]:
    small = {"vocab_size": 50257, "n_layer": 12, "n_head": 12, "n_embd": 768}
    return {
        # nanoGPT's settings for a CPU, from its README: Shakespeare, 65 characters
        "char": Shape(
            {"vocab_size": 65, "n_ctx": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}, 12, 1e-3, 20
        ),
        "default": Shape(
            {"vocab_size": 4096, "n_ctx": 512, "n_layer": 6, "n_head": 4, "n_embd": 256}, 8, 1e-3
        ),
        "124m": Shape({**small, "n_ctx": 1024}, 16, 3e-4, 10)
        if device == "cuda"
        else Shape({**small, "n_ctx": 256}, 2, 3e-4, 2),
    }


# dense bf16 FLOP/s, from the vendor's data sheets
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}

LEGEND = """\
Medians (lowest - highest) over the rounds. Ratio: of tokens per second to the first engine's.
Held-out loss: after all steps, in nats per token, on the same batches for all engines.
Memory: the process's peak; on a GPU, PyTorch's allocations.
Tokens a CPU second: per second of CPU time of all threads, so that other processes on a busy
machine count less. It says nothing on a GPU."""


@dataclass(frozen=True)
class Contender:
    label: str
    name: str
    compile: bool
    precision: str


@dataclass(frozen=True)
class Result:
    engine: str
    tokens_per_s: float
    lowest: float
    highest: float
    ratio: float
    tokens_per_cpu_s: float
    cpu_ratio: float
    held_out_loss: float
    memory_mb: float
    mfu: float | None


def main() -> None:
    args = arguments()
    shape = shapes(args.device)[args.shape]
    facts = machine("torch", "transformers", "accelerate")
    print(*lines(facts), sep="\n")
    with tempfile.TemporaryDirectory(prefix="gptx-training-") as name:
        folder = Path(name)
        parameters = prepare(shape, folder)
        steps = args.steps or calibrated(args, shape, folder)
        turns = [contender for _ in range(args.rounds) for contender in args.engines]
        raw: dict[str, list[dict[str, Any]]] = {contender.label: [] for contender in args.engines}
        for contender in tracked(turns, "measuring"):
            raw[contender.label].append(run(contender, args, shape, steps, folder))
    per_step = shape.batch_size * shape.model["n_ctx"]
    flops = flops_per_token(shape, parameters)
    gpu = raw[args.engines[0].label][0]["gpu"]
    peak = (
        args.peak_tflops * 1e12
        if args.peak_tflops
        else next((PEAKS[k] for k in PEAKS if k in (gpu or "")), None)
    )
    results: list[Result] = []
    for label, rounds in raw.items():
        speeds = [steps * per_step / one["seconds"] for one in rounds]
        speed = statistics.median(speeds)
        cpu_speed = statistics.median(steps * per_step / one["cpu_seconds"] for one in rounds)
        first = results[0] if results else None
        ratio = speed / first.tokens_per_s if first else 1.0
        cpu_ratio = cpu_speed / first.tokens_per_cpu_s if first else 1.0
        loss, memory = rounds[0]["loss"], max(one["memory"] for one in rounds) / 1e6
        mfu = speed * flops / peak if peak else None
        ends = min(speeds), max(speeds)
        results.append(Result(label, speed, *ends, ratio, cpu_speed, cpu_ratio, loss, memory, mfu))
    say(args, shape, parameters, steps, results, gpu, peak)
    settings = {name: getattr(args, name) for name in ("shape", "device", "threads", "rounds")}
    settings |= {
        **asdict(shape),
        "steps": steps,
        "parameters": parameters,
        "gpu": gpu,
        "peak": peak,
    }
    text = json.dumps(
        {
            "benchmark": "training",
            **facts,
            "settings": settings,
            "engines": [asdict(r) for r in results],
        }
    )
    if args.json:
        args.json.write_text(text + "\n", "utf-8")
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "engines",
        nargs="+",
        type=contender,
        metavar="ENGINE",
        help=f"NAME[:compile][:fp32]: {NAMES}",
    )
    parser.add_argument("--shape", choices=list(shapes("cpu")), default="default")
    parser.add_argument("--threads", type=int, default=cpu_cores())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--seconds", type=float, default=15, help="duration of the first engine's timed steps"
    )
    parser.add_argument("--steps", type=int, help="number of timed steps, instead of --seconds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--peak-tflops",
        type=float,
        help="the GPU's dense bf16 peak, if this program does not know it",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if len({one.label for one in args.engines}) < len(args.engines):
        parser.error("an engine is named twice")
    if min(args.threads, args.rounds, args.steps or 1) < 1 or args.seconds <= 0:
        parser.error("threads, rounds, steps and seconds are all above 0")
    return args


def contender(text: str) -> Contender:
    name, *variants = text.split(":")
    if name not in NAMES or set(variants) - {"compile", "fp32"}:
        raise argparse.ArgumentTypeError(
            f"{text}: expected NAME[:compile][:fp32] with one of {NAMES}"
        )
    return Contender(text, name, "compile" in variants, "fp32" if "fp32" in variants else "bf16")


def prepare(shape: Shape, folder: Path) -> int:
    """Write tokens and initial weights for all engines; returns the number of parameters.

    Every second token depends on the one before, so that there is something to learn. The others
    are random, small ids more often.
    """
    import torch
    from safetensors.torch import save_file

    from gptx_models.checkpoints.weights import tensors_of
    from gptx_models.gpt.config import GPTConfig
    from gptx_models.gpt.model import GPT

    torch.manual_seed(1)
    gpt = GPT(GPTConfig.from_dict(shape.model))
    save_file(
        {name: read() for name, _, read in tensors_of(gpt, "gpt2")}, folder / "initial.safetensors"
    )
    size = shape.model["vocab_size"]
    drawn = (size * np.random.default_rng(1).random(500_000) ** 3).astype(np.int64)
    tokens = np.stack((drawn, (drawn * 31 + 7) % size), axis=1).reshape(-1)
    np.save(folder / "tokens.npy", tokens.astype(np.uint16))
    return sum(p.numel() for p in gpt.parameters())


def calibrated(args: argparse.Namespace, shape: Shape, folder: Path) -> int:
    """The number of steps that the first engine makes in about --seconds."""
    few = shape.warmup
    return max(
        2, math.ceil(args.seconds * few / run(args.engines[0], args, shape, few, folder)["seconds"])
    )


def run(
    contender: Contender, args: argparse.Namespace, shape: Shape, steps: int, folder: Path
) -> dict[str, Any]:
    lesson = {
        "shape": shape.model,
        "batch_size": shape.batch_size,
        "learning_rate": shape.learning_rate,
        "warmup": shape.warmup,
        "steps": steps,
        "precision": contender.precision,
        "compile": contender.compile,
        "device": args.device,
        "threads": args.threads,
        "folder": str(folder),
    }
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    if args.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(LOOPS / f"{contender.name}_loop.py")],
        input=json.dumps(lesson),
        capture_output=True,
        text=True,
        env=environment,
        timeout=PATIENCE + 20 * args.seconds,
    )
    if done.returncode:
        sys.exit(
            f"{done.stderr}\n{contender.label} failed with exit status {done.returncode};"
            " its output is above"
        )
    return json.loads(done.stdout.splitlines()[-1])


def flops_per_token(shape: Shape, parameters: int) -> int:
    """6 N + 12 L d T for forward and backward (Chowdhery et al. 2022, PaLM, appendix B).

    N does not count learned positions, which are only added.
    """
    n_ctx, width = shape.model["n_ctx"], shape.model["n_embd"]
    return 6 * (parameters - n_ctx * width) + 12 * shape.model["n_layer"] * width * n_ctx


def say(
    args: argparse.Namespace,
    shape: Shape,
    parameters: int,
    steps: int,
    results: list[Result],
    gpu: str | None,
    peak: float | None,
) -> None:
    of = ", ".join(f"{name} {value}" for name, value in shape.model.items())
    place = (
        f"{gpu}, bf16 peak {peak / 1e12:.0f} TFLOP/s"
        if gpu and peak
        else gpu or f"{args.threads} threads"
    )
    print(
        f"{args.shape}: {of}; {parameters / 1e6:.2f}M parameters, batch {shape.batch_size}, {place}"
    )
    print(f"{steps} steps after {shape.warmup} that do not count, {args.rounds} rounds")
    heads = [
        "engine",
        "tokens/s",
        "ratio",
        "tokens/CPU s",
        "ratio",
        "held-out loss",
        "memory MB",
        *(["MFU"] if peak else []),
    ]
    rows = [
        [
            r.engine,
            f"{r.tokens_per_s:,.0f} ({r.lowest:,.0f} - {r.highest:,.0f})",
            f"{r.ratio:.3f}",
            f"{r.tokens_per_cpu_s:,.0f}",
            f"{r.cpu_ratio:.3f}",
            f"{r.held_out_loss:.4f}",
            f"{r.memory_mb:,.0f}",
            *([f"{r.mfu:.1%}"] if r.mfu is not None else []),
        ]
        for r in results
    ]
    print(f"\n{table(heads, rows)}\n\n{LEGEND}\n")


if __name__ == "__main__":
    main()
