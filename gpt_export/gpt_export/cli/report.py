"""What export and quantize print on standard output: the plan of --dry-run, and the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptx.artifact.manifest import read_manifest
from gptx.artifact.uses import task_in_words, use_command
from gptx.cli.output import printable, write_out

if TYPE_CHECKING:  # gpt_export.plan loads torch
    from gpt_export.plan import Plan

EXAMPLE = '"Once upon a time"'


def print_plan(plan: Plan) -> None:
    write_out(
        f"parameters  {plan.parameters / 1e6:,.1f} M\n"
        f"artifact    {plan.artifact_bytes / 1e6:,.1f} MB\n"
        f"disk        {plan.disk_bytes / 1e6:,.1f} MB while it is made\n"
        f"memory      {plan.memory_bytes / 1e6:,.0f} MB at most (estimate)\n"
    )


def report(out: Path, certificate: dict[str, Any]) -> None:
    """Print size, figures and the next command on standard output."""
    figures, greedy = certificate["figures"], certificate["greedy"]
    size = sum(p.stat().st_size for p in (out / "onnx").iterdir())
    against, text = f"against {certificate['against']} on {figures['positions']} tokens:", ""
    if greedy["compared"]:  # a language model
        against += (
            f" perplexity {figures['perplexity']:.4f} ({figures['perplexity_reference']:.4f}),"
        )
        text = f", greedy text identical for {greedy['identical']} of {greedy['compared']} tokens"
    manifest = read_manifest(out)
    task = task_in_words(out, manifest.model.n_class)
    told = f"task: {printable(task)}\n" if task else ""
    write_out(
        f"{out}: graph and weights {size / 1e6:,.1f} MB\n"
        f"{against} mean KL {figures['kl_mean']:.2e},\n"
        f"same top-1 {figures['same_top1']:.2%},"
        f" largest difference {figures['max_abs']:.2e}{text}\n"
        f"{told}next: {use_command(manifest, EXAMPLE)}\n"
    )
