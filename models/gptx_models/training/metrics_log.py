"""What a run was like, step by step: metrics.csv, a picture of the losses, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import importlib.util
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

METRICS, PICTURE = "metrics.csv", "loss.png"


@dataclass(frozen=True)
class MetricsRow:
    """A row of metrics.csv. Losses are in nats a token; what was not measured at a step is empty."""

    step: int
    tokens: int
    seconds: float
    learning_rate: float
    train_loss: float  # mean since the row before
    grad_norm: float  # of the last step, before clipping
    val_loss: float | None = None
    bits_per_byte: float | None = None


class MetricsLog:
    """Appends points to the metrics of a run's folder; those of steps that a killed run lost are dropped first."""

    def __init__(self, folder: Path, *, done: int) -> None:
        self.folder = folder
        self.points = [point for point in read_metrics(folder) if point.step <= done]
        self._write_all()
        self._board = _tensorboard(folder, purge=done)

    def add(self, point: MetricsRow) -> None:
        self.points.append(point)
        with open(self.folder / METRICS, "a", newline="") as file:
            csv.writer(file).writerow(_cells(point))
        if self._board:
            for name, value in asdict(point).items():
                if value is not None and name not in ("step", "tokens"):
                    self._board.add_scalar(name, value, point.step)

    def draw(self) -> None:
        """loss.png: both losses over the tokens seen."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        trained = [(p.tokens / 1e6, p.train_loss) for p in self.points]
        checked = [(p.tokens / 1e6, p.val_loss) for p in self.points if p.val_loss is not None]
        axes.plot(*zip(*trained), color="#9aa7b8", linewidth=1, label="training")
        if checked:
            axes.plot(
                *zip(*checked),
                color="#c2410c",
                linewidth=2,
                marker="o",
                markersize=3,
                label="validation",
            )
        low = min(loss for _, loss in trained + checked)
        high = max(
            loss for _, loss in trained[len(trained) // 20 :]
        )  # the first steps would flatten all the rest
        axes.set(xlabel="million tokens", ylabel="loss, nats a token", ylim=_limits(low, high))
        axes.grid(alpha=0.3)
        axes.legend()
        part = self.folder / f"{PICTURE}.part"
        figure.savefig(part, dpi=120, format="png")
        pyplot.close(figure)
        os.replace(part, self.folder / PICTURE)

    def _write_all(self) -> None:
        part = self.folder / f"{METRICS}.part"
        with open(part, "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([f.name for f in fields(MetricsRow)])
            rows.writerows(_cells(point) for point in self.points)
        os.replace(part, self.folder / METRICS)


def _limits(low: float, high: float) -> tuple[float, float]:
    """Of the axis of losses; matplotlib warns of an empty one, as of a single point."""
    return (low - 0.05 * (high - low), high) if high > low else (low - 0.5, low + 0.5)


def read_metrics(folder: Path) -> list[MetricsRow]:
    """The points in a run's folder; a last line that was cut off is left out."""
    file = folder / METRICS
    if not file.exists():
        return []
    with open(file, newline="") as lines:
        rows = [
            row for row in csv.DictReader(lines) if None not in row.values() and None not in row
        ]
    return [
        MetricsRow(
            *(int(row[name]) for name in ("step", "tokens")),
            *(float(row[name]) for name in ("seconds", "learning_rate", "train_loss", "grad_norm")),
            *(float(row[name]) if row[name] else None for name in ("val_loss", "bits_per_byte")),
        )
        for row in rows
    ]


def _cells(point: MetricsRow) -> list[Any]:
    values = asdict(point).values()
    return [
        "" if value is None else f"{value:.7g}" if isinstance(value, float) else value
        for value in values
    ]


def _tensorboard(folder: Path, *, purge: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard", purge_step=purge)
