"""The engines' figures as bars in a PNG: prefill, decode with its limit, memory, batch. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

from gptx.bench.figures import Spread
from gptx.bench.speed import Result
from gptx.errors import UsageError

# colours that stay apart for the colour-blind (Okabe and Ito)
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442"]


class Panel(NamedTuple):
    title: str
    spreads: dict[str, Spread]  # by engine
    lines: dict[str, float]  # what a bar is to be seen beside; empty: nothing


def need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            "--picture needs matplotlib, which is not installed: pip install matplotlib"
        ) from error


def picture(results: Sequence[Result], title: str) -> bytes:
    """A PNG file's bytes."""
    need_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = panels(results)
    rows = (len(shown) + 1) // 2
    figure, axes = pyplot.subplots(
        rows, 2, figsize=(11, rows * (0.9 + 0.27 * len(results))), squeeze=False, sharey=True
    )
    colours = {one.contender.label: COLOURS[i % len(COLOURS)] for i, one in enumerate(results)}
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, shown):
        names, spreads = list(panel.spreads), panel.spreads.values()
        errors = [
            [one.median - one.lowest for one in spreads],
            [one.highest - one.median for one in spreads],
        ]
        bars = axis.barh(
            names,
            [one.median for one in spreads],
            xerr=errors,
            color=[colours[name] for name in names],
            error_kw={"ecolor": "#555555", "capsize": 2},
        )
        axis.bar_label(bars, labels=[f"{one.median:.4g}" for one in spreads], padding=3, fontsize=8)
        axis.plot(list(panel.lines.values()), list(panel.lines), "k|", markersize=14)
        axis.margins(x=0.15)
        axis.set_title(panel.title, fontsize=10, loc="left")
        axis.set_ylim(len(results) - 0.5, -0.5)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}; medians, lines from lowest to highest", fontsize=10)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)
    return file.getvalue()


def panels(results: Sequence[Result]) -> list[Panel]:
    names = [one.contender.label for one in results]
    limits = {name: one.limit for name, one in zip(names, results)}
    shown = []
    for length in results[0].prompts:
        found = {name: one.prompts[length] for name, one in zip(names, results)}
        prefill = {name: one["prefill_s"].times(1e3) for name, one in found.items()}
        decode = {name: one["decode_tokens_per_s"] for name, one in found.items()}
        shown.append(Panel(f"prefill of {length} tokens, ms", prefill, {}))
        shown.append(
            Panel(f"decode after {length} tokens, tok/s (|: limit of memory)", decode, limits)
        )
    if results[0].memory:
        for key, title in (
            ("used", "memory after use, MB"),
            ("peak_running", "most memory while running, MB"),
        ):
            shown.append(
                Panel(title, {n: one.memory[key].times(1e-6) for n, one in zip(names, results)}, {})
            )
    batches = {name: one.batch for name, one in zip(names, results) if one.batch}
    if batches:
        together = {name: batch["tokens_per_s"] for name, batch in batches.items()}
        alone = {name: batch["alone_tokens_per_s"].median for name, batch in batches.items()}
        shown.append(Panel("a batch together, tok/s in all (|: a row alone)", together, alone))
    return shown
