"""Draw the speed of engines as bars: prefill, decode, memory, batch. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from gptx.bench.figures import Spread
from gptx.bench.speed import EngineSpeed
from gptx.errors import UsageError

# colours that colour-blind people can tell apart (Okabe and Ito)
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442"]


class Panel(NamedTuple):
    """One chart: a bar for each engine."""

    title: str
    spreads: dict[str, Spread]  # by engine
    lines: dict[str, float]  # by engine: a value to mark beside its bar; {}: none


def need_matplotlib() -> None:
    """Raise UsageError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            "--picture needs matplotlib, which is not installed: pip install matplotlib"
        ) from error


def picture(results: Sequence[EngineSpeed], title: str) -> bytes:
    """The bytes of a PNG file with all panels, two in a row."""
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
        _draw(axis, panel, colours)
        axis.set_ylim(len(results) - 0.5, -0.5)
    figure.suptitle(f"{title}; medians, lines from lowest to highest", fontsize=10)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)
    return file.getvalue()


def _draw(axis: Any, panel: Panel, colours: dict[str, str]) -> None:
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
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def panels(results: Sequence[EngineSpeed]) -> list[Panel]:
    """The charts for everything that was measured."""
    by_name = {one.contender.label: one for one in results}
    return [
        *(panel for length in results[0].prompts for panel in _prompt_panels(by_name, length)),
        *_memory_panels(by_name),
        *_batch_panels(by_name),
    ]


def _prompt_panels(by_name: dict[str, EngineSpeed], length: int) -> list[Panel]:
    found = {name: one.prompts[length] for name, one in by_name.items()}
    prefill = {name: one["prefill_s"].times(1e3) for name, one in found.items()}
    decode = {name: one["decode_tokens_per_s"] for name, one in found.items()}
    limits = {name: one.limit for name, one in by_name.items()}
    return [
        Panel(f"prefill of {length} tokens, ms", prefill, {}),
        Panel(f"decode after {length} tokens, tok/s (|: limit of memory)", decode, limits),
    ]


def _memory_panels(by_name: dict[str, EngineSpeed]) -> list[Panel]:
    titles = {"used": "memory after use, MB", "peak_running": "peak memory while running, MB"}
    return [
        Panel(title, {name: one.memory[key].times(1e-6) for name, one in by_name.items()}, {})
        for key, title in titles.items()
        if all(one.memory for one in by_name.values())
    ]


def _batch_panels(by_name: dict[str, EngineSpeed]) -> list[Panel]:
    batches = {name: one.batch for name, one in by_name.items() if one.batch}
    if not batches:
        return []
    together = {name: batch["tokens_per_s"] for name, batch in batches.items()}
    alone = {name: batch["alone_tokens_per_s"].median for name, batch in batches.items()}
    return [Panel("a batch together, tok/s in all (|: a row alone)", together, alone)]
