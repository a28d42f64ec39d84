"""gptx quantize --budget: write the mix of 4 and 8 bits that is best inside a budget.

In: an fp32 artifact. Out: the quantized artifact, and a table and a picture of the measured mixes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt_export.graph.attention_forms import CacheForm
from gpt_export.graph.build import build_graph, save_graph
from gpt_export.graph.layers import Quantized, graph_layers
from gpt_export.graph.read_weights import load_gpt
from gpt_export.graph.step_graph import CacheType
from gpt_export.graph.write_step_graph import (
    add_step_graph,
    check_cache_type,
    with_cache_type,
)
from gpt_export.mixed_precision.artifact_size import artifact_bytes, least_bytes
from gpt_export.mixed_precision.budget import Budget, smallest_inside, spaced
from gpt_export.mixed_precision.mix import Mixes, make_mixes, mean_bits, measure
from gpt_export.mixed_precision.pareto import (
    Point,
    by_size,
    megabytes,
    need_matplotlib,
    picture,
    table,
    to_json,
)
from gpt_export.mixed_precision.timing import Timings
from gpt_export.plan import Plan
from gpt_export.quantization.quantize import (
    Workspace,
    expect_fp32,
    gpt_config,
    load_calibration,
    open_workspace,
    plan_quantize,
    prove_quantized,
)
from gpt_export.quantization.recipes import (
    SCHEMES,
    Quantization,
    describe,
    kept_offsets,
    quantize_weights,
)
from gpt_export.quantization.rotate import rotate
from gptx.artifact.folders import check_new_file, write_file
from gptx.artifact.layout import GRAPH
from gptx.artifact.manifest import Manifest
from gptx.errors import ParityError, UsageError
from gptx.parity.limits import limits_for
from gptx.progress import note, stage
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT

MEASURED = 2048  # tokens that each mix is measured on; the certificate uses the whole proof text


@dataclass(frozen=True)
class Outcome:
    certificate: dict[str, Any]
    table: str
    picture: Path


def quantize_within(
    source: Path,
    out: Path,
    *,
    budget: Budget,
    picture_file: Path | None = None,
    cache_type: CacheType | None = None,
    checkpoint: Path | None = None,
    text: Path | None = None,
    calibration: Path | None = None,
    limits: Mapping[str, float] | None = None,
    accept: bool = False,
    force: bool = False,
) -> Outcome:
    """Quantize the fp32 artifact `source` to `out` inside a budget.

    A budget of perplexity gives the smallest artifact inside it; a budget of size the one with the
    least KL. picture_file: a PNG, by default OUT-pareto.png. The other options are those of
    quantize_artifact.

    Raises UsageError if the size is too small for any mix, ParityError if no mix keeps the
    perplexity, and what quantize_artifact raises.
    """
    manifest, config = check_budget(source, budget, limits, cache_type)
    picture_file = new_picture(out, picture_file, force=force)
    needed = plan_quantize(manifest, "int8").disk_bytes
    with open_workspace(
        manifest,
        out,
        checkpoint=checkpoint,
        text=text,
        calibration=calibration,
        needed=needed,
        force=force,
    ) as workspace:
        search = Search(workspace, config, budget, cache_type)
        search.run()
        chosen, certificate = search.write_best(limits, accept=accept)
        title = f"{source.name}, budget {budget}: chosen {chosen.name}, {megabytes(chosen.size)} MB"
        drawn = picture(search.points, chosen, title)
    write_file(picture_file, drawn)
    shown = table(search.points, chosen, search.timings.operators)
    return Outcome(certificate, shown, picture_file)


def new_picture(out: Path, picture_file: Path | None, *, force: bool) -> Path:
    """The picture's file, by default OUT-pareto.png. Raises OutputError if it cannot be written."""
    out = Path(os.path.abspath(out))  # so that "." has a name, too
    picture_file = picture_file or out.with_name(f"{out.name}-pareto.png")
    check_new_file(picture_file, force=force)
    return picture_file


def check_budget(
    source: Path,
    budget: Budget,
    limits: Mapping[str, float] | None = None,
    cache_type: CacheType | None = None,
) -> tuple[Manifest, GPTConfig]:
    """Check the options of quantize_within before the weights are read. Raises UsageError."""
    manifest = expect_fp32(source)
    config = gpt_config(manifest)
    if config is None:
        raise UsageError(
            f"{source} was exported by optimum: --budget needs a model that gptx itself exported"
        )
    if config.n_class and budget.perplexity is not None:
        raise UsageError(
            f"{source} classifies and has no perplexity:"
            " give a budget of size, for example size=100MB"
        )
    check_cache_type(cache_type, config)
    limits_for("int4", limits)  # checks their names
    need_matplotlib()
    return manifest, config


def plan_within(
    source: Path,
    budget: Budget,
    *,
    calibration: Path | None = None,
    limits: Mapping[str, float] | None = None,
    cache_type: CacheType | None = None,
) -> Plan:
    """Estimate quantize_within. Raises UsageError if the size is too small for any mix."""
    manifest, config = check_budget(source, budget, limits, cache_type)
    plan = plan_quantize(manifest, "int8")
    if budget.size is None:
        return plan
    gpt, windows = load_gpt(manifest.path, config), load_calibration(manifest, calibration).windows
    expect_room(budget, least_bytes(gpt, windows, manifest.graph.stat().st_size))
    return replace(plan, artifact_bytes=min(plan.artifact_bytes, budget.size))


def expect_room(budget: Budget, least: int) -> None:
    """Raise UsageError if the smallest mix, of `least` bytes, is larger than the budget."""
    if budget.size is not None and least > budget.size:
        raise UsageError(
            f"the budget of {budget} is too small: all layers in 4 bits take"
            f" {megabytes(least)} MB, and no mix is smaller"
        )


class Search:
    """Measures mixes of one model (`points`), and writes the best of them."""

    def __init__(
        self,
        workspace: Workspace,
        config: GPTConfig,
        budget: Budget,
        cache_type: CacheType | None = None,
    ) -> None:
        self.workspace, self.config, self.budget = workspace, config, budget
        self.cache_type: CacheType | None = cache_type
        self.timings = Timings(config)
        self.points: list[Point] = []

    def run(self) -> None:
        """Round the layers, measure their costs, then measure whole mixes."""
        windows = self.workspace.calibration.windows
        gpt = load_gpt(self.workspace.manifest.path, self.config)
        expect_room(self.budget, least_bytes(gpt, windows, self.graph_bytes))
        if kept_offsets(gpt):
            made = quantize_weights(gpt, SCHEMES["int4"], windows)
            self.timings.time(made.weights.values())
            self.measure(gpt, "the source's 4 bits", made)
        mixes = make_mixes(gpt, windows)
        expect_room(self.budget, self.size(gpt, mixes.weights(0)))
        self.timings.time(
            [weight for form in mixes.forms for piece in form.values() for weight in piece.values()]
        )
        self.measure_mixes(gpt, mixes)

    def measure_mixes(self, gpt: GPT, mixes: Mixes) -> None:
        """Measure mixes from the smallest to the largest, more of them near the budget."""
        top = len(mixes.steps)
        found: dict[int, Point] = {}

        def at(count: int) -> Point:
            if count not in found:
                made = Quantization(mixes.weights(count), mixes.rotated, mixes.costs[0])
                found[count] = self.measure(gpt, mixes.name(count), made)
            return found[count]

        if self.budget.size is None:
            smallest_inside(top, lambda count: self.inside(at(count)))
        else:
            sizes = [self.size(gpt, mixes.weights(count)) for count in range(top + 1)]
            largest = max(n for n, size in enumerate(sizes) if size <= self.budget.size)
            for count in sorted({*spaced(top), largest}):
                at(count)
        least = at(top).figures.kl_mean
        for count, point in found.items():
            point.predicted_kl = least + mixes.predicted_kl(count)

    def measure(self, gpt: GPT, name: str, made: Quantization) -> Point:
        """Measure one mix in PyTorch, and add it to `points`."""
        figures = measure(
            gpt, made.weights, self.workspace.recording, MEASURED, f"Measuring {name}"
        )
        ms = self.timings.of(made.weights)
        point = Point(name, made, self.size(gpt, made.weights), ms, figures)
        self.points.append(point)
        return point

    def size(self, gpt: GPT, weights: Mapping[str, Quantized]) -> int:
        return artifact_bytes(gpt, weights, self.graph_bytes)

    @property
    def graph_bytes(self) -> int:
        """Size of the source's graph file."""
        return self.workspace.manifest.graph.stat().st_size

    def inside(self, point: Point) -> bool:
        """True if a point is inside the budget, by its figures in PyTorch or estimated size."""
        if self.budget.perplexity is not None:
            return point.change <= self.budget.perplexity
        assert self.budget.size is not None
        return point.size <= self.budget.size

    def candidates(self) -> list[Point]:
        """Points to write, the best first, until one is inside the budget."""
        inside = [point for point in self.points if self.inside(point)]
        if self.budget.size is not None:
            return sorted(inside, key=lambda point: point.figures.kl_mean)
        # if none is inside: the whole proof text may judge the nearest one better than this part of
        # it
        return by_size(inside) or [min(self.points, key=lambda point: point.change)]

    def write_best(
        self, limits: Mapping[str, float] | None, *, accept: bool
    ) -> tuple[Point, dict[str, Any]]:
        """Write mixes, the best first, until one is inside the budget by its certificate.

        Returns the point and its certificate. Raises ParityError if none is.
        """
        last = ""
        for point in self.candidates():
            if last:
                note(f"{last}: {point.name} is tried")
            self.write(point)
            if self.budget.size is not None and point.size > self.budget.size:
                last = f"{point.name} takes {megabytes(point.size)} MB"
                continue
            try:
                certificate = self.prove(point, limits, accept=accept)
            except ParityError as error:
                if self.budget.size is not None:
                    raise
                last = str(error).partition(":")[0]
                continue
            if self.budget.perplexity is None:
                return point, certificate
            figures = certificate["figures"]
            change = figures["perplexity"] / figures["perplexity_reference"] - 1
            if change <= self.budget.perplexity:
                return point, certificate
            last = f"{point.name} changes the perplexity by {change:+.2%} on the whole proof text"
        raise ParityError(
            f"no mix was inside the budget of {self.budget} ({last}): nothing was written"
        )

    def write(self, point: Point) -> None:
        """Write the graphs of a mix, replacing earlier ones; correct the sizes of all points."""
        form: CacheForm = self.workspace.manifest.cache  # type: ignore[assignment]
        folder = self.workspace.staging / Path(GRAPH).parent
        shutil.rmtree(folder, ignore_errors=True)
        gpt = load_gpt(self.workspace.manifest.path, self.config)
        if point.made.rotated:
            rotate(gpt)
        with stage("Tracing the graph"):
            save_graph(build_graph(graph_layers(gpt, form, point.made.weights), form), folder)
            add_step_graph(gpt, self.workspace.staging, self.cache_type)
        off = sum(file.stat().st_size for file in folder.iterdir()) - point.size
        # what was estimated is the graph files, whose error is nearly the same for all mixes
        for one in self.points:
            one.size += off

    def prove(
        self, point: Point, limits: Mapping[str, float] | None, *, accept: bool
    ) -> dict[str, Any]:
        """Prove the mix that was written; returns its certificate. Raises ParityError."""
        layers = [
            weight for name, weight in point.made.weights.items() if name.startswith("blocks.")
        ]
        bits = mean_bits(layers)
        precision = "int4" if bits < 6 else "int8"
        # unless all layers have 8 bits, the loss may lie between those of int8 and int4
        allowed = limits_for("int8" if bits == 8 else "int4", limits)
        facts = {
            **describe("mix", point.made),
            "mix": point.name,
            "budget": str(self.budget),
            "pareto": to_json(self.points, point, self.timings.operators),
            "calibration": self.workspace.calibration.description,
        }
        what = f"the mix of {self.workspace.manifest.path} with {point.name}"
        what = with_cache_type(what, self.cache_type)
        return prove_quantized(self.workspace, precision, facts, allowed, accept=accept, what=what)
