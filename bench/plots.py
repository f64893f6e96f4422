"""Plots of a report: its ratios at a glance, a line for what varies in size, histograms.

Imported only where plots are wanted: nothing else of the bench needs matplotlib.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import log10
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import LogLocator

from bench.figures import Figure, Verdict
from bench.report import Measured, Report, percentiles_of, shown

STYLE: Any = {
    "svg.hashsalt": "bench",  # the same report makes the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}
COLOURS = {
    None: "#7f8ea3",
    Verdict.MET: "#2a9d6f",
    Verdict.MISSED: "#c8553d",
    Verdict.UNSURE: "#d9a441",
}
WIDE = 50
"""From this ratio of the largest to the smallest on, an axis is logarithmic."""
BINS = 60
BAR_INCHES = 0.34


def draw(report: Report, directory: Path) -> list[str]:
    """Write each plot as PNG and as SVG; their names."""
    with mpl.rc_context(STYLE):
        drawings = drawings_of(report)
        directory.mkdir(parents=True, exist_ok=True)
        for name, drawing in drawings.items():
            drawing.savefig(directory / f"{name}.png", dpi=160)
            drawing.savefig(directory / f"{name}.svg", metadata={"Date": None})
    return list(drawings)


def drawings_of(report: Report) -> dict[str, Drawing]:
    """The plots that there is something to show for."""
    drawings = {}
    if bars := [
        (measured.workload, figure)
        for measured in report.workloads
        for figure in measured.figures
        if figure.is_ratio and figure.series is None
    ]:
        drawings["overview"] = overview(report, bars)
    for measured in report.workloads:
        if points := [figure for figure in measured.figures if is_point(figure)]:
            drawings[measured.workload] = lines(measured, points)
        if sampled := [figure for figure in measured.figures if figure.samples]:
            drawings[f"{measured.workload}-latency"] = histogram(measured, sampled)
    return drawings


def is_point(figure: Figure) -> bool:
    """Whether it is part of a line, and was measured."""
    return figure.series is not None and figure.x is not None and figure.failure is None


def overview(report: Report, bars: Sequence[tuple[str, Figure]]) -> Drawing:
    """All ratios, as bars that begin at 1: where there is no difference."""
    drawing = Drawing(figsize=(9, 1.6 + BAR_INCHES * len(bars)), layout="constrained")
    axes = drawing.add_subplot()
    axes.set_xscale("log")
    for row, (_, figure) in enumerate(bars):
        bar(axes, row, figure)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(bars)), [f"{workload}: {figure.name}" for workload, figure in bars])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} x")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(
        "ratios: median of the rounds, lowest and highest; ◇ target\n"
        "green met, red missed, yellow unsure, grey without target",
        fontsize=9,
        loc="left",
    )
    drawing.supxlabel(origin_of(report), fontsize=7)
    return drawing


def bar(axes: Axes, row: int, figure: Figure) -> None:
    """One ratio."""
    middle, bounds = figure.median, bounds_of(figure)
    axes.barh(row, middle - 1, left=1, height=0.62, color=COLOURS[figure.verdict])
    axes.hlines(row, figure.lowest, figure.highest, color="black", linewidth=1)
    axes.scatter(bounds, [row] * len(bounds), marker="D", s=18, color="white", edgecolor="black")
    axes.annotate(
        f"{shown(middle)} x",
        (max(figure.highest, 1, *bounds), row),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
    )


def bounds_of(figure: Figure) -> list[float]:
    """The ends of its target."""
    if figure.target is None:
        return []
    ends = (figure.target.at_least, figure.target.at_most)
    return [end for end in ends if end is not None]


def lines(measured: Measured, points: Sequence[Figure]) -> Drawing:
    """What a workload found for each size, a panel for each pair of units."""
    panels: dict[tuple[str, str], list[Figure]] = defaultdict(list)
    for point in points:
        panels[point.unit, point.x_unit].append(point)
    drawing = Drawing(figsize=(8, 0.6 + 3.2 * len(panels)), layout="constrained")
    every = drawing.subplots(len(panels), squeeze=False)
    for axes, some in zip(every.flat, panels.values(), strict=True):
        panel(axes, some)
    drawing.suptitle(f"{measured.workload}: median of the rounds, lowest and highest", fontsize=9)
    return drawing


def panel(axes: Axes, points: Sequence[Figure]) -> None:
    """The lines of one pair of units."""
    series: dict[str, list[Figure]] = defaultdict(list)
    for point in points:
        series[str(point.series)].append(point)
    for name, some in series.items():
        line(axes, name, sorted(some, key=x_of))
    xs = sorted({x_of(point) for point in points})
    if is_wide(xs):
        axes.set_xscale("log")
    if is_wide([point.median for point in points]):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(xs, [shown(x) for x in xs], minor=False)
    axes.minorticks_off()
    axes.set_xlabel(points[0].x_unit)
    axes.set_ylabel(points[0].unit)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def line(axes: Axes, name: str, points: Sequence[Figure]) -> None:
    """One line, with the spread of each of its points."""
    spread = [
        [point.median - point.lowest for point in points],
        [point.highest - point.median for point in points],
    ]
    axes.errorbar(
        [x_of(point) for point in points],
        [point.median for point in points],
        yerr=spread,
        marker="o",
        markersize=4,
        capsize=3,
        label=name,
    )


def histogram(measured: Measured, figures: Sequence[Figure]) -> Drawing:
    """How often a single measurement took how long, a panel for each unit."""
    panels: dict[str, list[Figure]] = defaultdict(list)
    for figure in figures:
        panels[figure.unit].append(figure)
    drawing = Drawing(figsize=(8, 0.6 + 3.2 * len(panels)), layout="constrained")
    every = drawing.subplots(len(panels), squeeze=False)
    for axes, (unit, some) in zip(every.flat, panels.items(), strict=True):
        distribution(axes, unit, some)
    drawing.suptitle(f"{measured.workload}: single measurements; p50 and p99 dashed", fontsize=9)
    return drawing


def distribution(axes: Axes, unit: str, figures: Sequence[Figure]) -> None:
    """Histograms on common bins, as shares: contenders may have as many samples as they like."""
    bins = bins_of(sample for figure in figures for sample in figure.samples)
    for number, figure in enumerate(figures):
        middle, late = percentiles_of(figure.samples, 50, 99)
        colour = f"C{number}"
        axes.hist(
            figure.samples,
            bins,
            weights=[100 / len(figure.samples)] * len(figure.samples),
            histtype="stepfilled",
            alpha=0.5,
            color=colour,
            label=f"{figure.name}: p50 {shown(middle)} {unit}, p99 {shown(late)} {unit}",
        )
        for percentile in (middle, late):
            axes.axvline(percentile, color=colour, linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel(unit)
    axes.set_ylabel("% of the samples")
    axes.legend(frameon=False)


def bins_of(samples: Iterable[float]) -> list[float]:
    """Edges at even ratios, from the lowest to the highest."""
    positive = [sample for sample in samples if sample > 0] or [1.0]
    low, high = log10(min(positive)), log10(max(positive) * 1.001)
    return [10 ** (low + (high - low) * edge / BINS) for edge in range(BINS + 1)]


def x_of(point: Figure) -> float:
    """Where it is on its line."""
    assert point.x is not None
    return point.x


def is_wide(values: Sequence[float]) -> bool:
    """Whether an even axis would squeeze the small ones together."""
    return min(values) > 0 and max(values) >= WIDE * min(values)


def origin_of(report: Report) -> str:
    """What the figures depend on, in a line."""
    commit = report.commit[:10] or "unknown"
    return (
        f"{report.processors} x {report.processor}, Postgres "
        f"{report.settings.get('server_version', '?')}, Python {report.python}, "
        f"commit {commit}, {report.date:%Y-%m-%d}"
    )
