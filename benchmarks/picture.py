"""The result of speed.py as bars in a PNG: prefill and decode for each prompt length, and memory. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# colours that stay apart for the colour-blind (Okabe and Ito)
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442"]


def draw(engines: list[dict[str, Any]], title: str, file: Path) -> None:
    """`engines`: as in speed.py's JSON."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = []
    for length in engines[0]["prompts"]:
        found = [engine["prompts"][length] for engine in engines]
        panels.append((f"prefill of {length} tokens, ms", [one["prefill_s"] for one in found], 1e3))
        panels.append((f"decode after {length} tokens, tok/s", [one["decode_tokens_per_s"] for one in found], 1))
    if "memory_loaded" in engines[0]:
        panels.append(("memory after use, MB", [engine["memory_used"] for engine in engines], 1e-6))
        panels.append(("peak in generation, MB", [engine["peak_running"] for engine in engines], 1e-6))
    rows = (len(panels) + 1) // 2
    figure, axes = pyplot.subplots(rows, 2, figsize=(11, rows * (0.9 + 0.27 * len(engines))), squeeze=False)
    names = [engine["engine"] for engine in engines]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(engines))]
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (panel, spreads, scale) in zip(axes.flat, panels):
        medians = [one["median"] * scale for one in spreads]
        errors = [
            [(one["median"] - one["lowest"]) * scale for one in spreads],
            [(one["highest"] - one["median"]) * scale for one in spreads],
        ]
        bars = axis.barh(names, medians, xerr=errors, color=colours, error_kw={"ecolor": "#555555", "capsize": 2})
        axis.bar_label(bars, labels=[f"{value:.4g}" for value in medians], padding=3, fontsize=8)
        axis.margins(x=0.15)
        axis.set_title(panel, fontsize=10, loc="left")
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}; medians, lines from lowest to highest", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
