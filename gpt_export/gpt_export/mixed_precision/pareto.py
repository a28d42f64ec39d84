"""The mixes that were measured, as a table of plain text, as JSON for gptx.json, and as a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt_export.quantization.recipes import Quantization
from gptx.errors import UsageError
from gptx.parity.metrics import Figures
from gptx.system.cpu import cpu_name

HEADER = ("", "mix", "MB", "ms a token", "predicted KL", "KL", "perplexity", "change")


@dataclass(eq=False)  # a point is itself alone
class Point:
    """A mix. figures: measured in PyTorch on part of the proof text. predicted_kl: of single layers, added up."""

    name: str
    made: Quantization
    size: int  # of the files in onnx/, bytes: estimated until it is written
    ms: float
    figures: Figures
    predicted_kl: float | None = None

    @property
    def change(self) -> float:
        """How much the perplexity rises."""
        return self.figures.perplexity / self.figures.perplexity_reference - 1


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}" if size >= 1e7 else f"{size / 1e6:.3f}"


def by_size(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: (point.size, point.figures.kl_mean))


def is_best(point: Point, points: Sequence[Point]) -> bool:
    """On the Pareto front: no other is smaller and nearer to the reference."""
    return not any(
        other.size <= point.size
        and other.figures.kl_mean <= point.figures.kl_mean
        and other is not point
        for other in points
    )


def table(points: Sequence[Point], chosen: Point) -> str:
    rows: list[tuple[str, ...]] = [HEADER]
    for point in by_size(points):
        rows.append(
            (
                ">" if point is chosen else "" if is_best(point, points) else "-",
                point.name,
                megabytes(point.size),
                f"{point.ms:.3g}",
                number(point.predicted_kl, ".2e"),
                number(point.figures.kl_mean, ".2e"),
                number(point.figures.perplexity, ".4f"),
                number(point.change, "+.2%"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    cells = [
        [(str.ljust if i < 2 else str.rjust)(row[i], widths[i]) for i in range(len(row))]
        for row in rows
    ]
    return "\n".join(
        ["  ".join(row).rstrip() for row in cells] + [*notes(chosen.figures.positions), ""]
    )


def number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def notes(tokens: int) -> list[str]:
    return [
        "> was chosen, - is no better than a smaller one. MB: graph and weights, to some kB but for what was written.",
        "ms a token: the products of one token's layers and head, each form timed here in ONNX Runtime; no attention.",
        f"KL, perplexity: measured in PyTorch with rounded weights and activations, on {tokens} tokens of the proof text.",
        "Predicted KL: of the smallest loss, all in 8 bits, and of each layer in 4 bits alone, added up.",
        "A mix says how many layers have which form; 4/32: 4 bits, a scale and a zero point for 32 weights.",
    ]


def to_json(points: Sequence[Point], chosen: Point) -> dict[str, Any]:
    return {
        "measured": f"in PyTorch on {chosen.figures.positions} tokens of the proof text",
        "timed": f"the products of one token, {cpu_name()}",
        "points": [
            {
                "mix": point.name,
                "bytes": point.size,
                "ms_per_token": round(point.ms, 4),
                "predicted_kl": point.predicted_kl,
                "kl_mean": point.figures.kl_mean,
                "perplexity": None if math.isnan(point.change) else point.figures.perplexity,
                "perplexity_change": None if math.isnan(point.change) else point.change,
                "chosen": point is chosen,
            }
            for point in by_size(points)
        ],
    }


def need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            "--budget draws a picture with matplotlib, which is not installed: pip install matplotlib"
        ) from error


def picture(points: Sequence[Point], chosen: Point, title: str) -> bytes:
    """A PNG file's bytes: KL over size and over time, the chosen mix marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    shown = by_size(points)
    kl = [max(point.figures.kl_mean, 1e-9) for point in shown]
    sides = (
        ("MB of graph and weights", [point.size / 1e6 for point in shown]),
        ("ms a token in products", [point.ms for point in shown]),
    )
    for axis, (what, values) in zip(axes, sides):
        axis.plot(values, kl, "o", color="#0072B2", markersize=5)
        at = shown.index(chosen)
        axis.plot(
            values[at], kl[at], "o", color="#D55E00", markersize=10, label=f"chosen: {chosen.name}"
        )
        for point, value, height in zip(shown, values, kl):
            axis.annotate(
                number(point.change, "+.2%"),
                (value, height),
                (5, 4),
                textcoords="offset points",
                fontsize=7,
            )
        axis.set(xlabel=what, yscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean KL, nats (beside it: change of perplexity)")
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)
    return file.getvalue()
