"""Where runs are kept: `bench/results`, a JSON file and a directory of plots for each.

All are ignored by git but one, the reference, which `make bench-check` compares with.
"""

from pathlib import Path

import msgspec

from bench.report import Report

RESULTS = Path(__file__).parent / "results"
REFERENCE = "reference"
NO_PLOTS = "no plots, for matplotlib is not installed here: pip install matplotlib draws them"
NO_REFERENCE = (
    "there is no {path} to compare with; "
    "make one on a quiet machine: python -m bench --full --reference"
)


class UnusableReferenceError(Exception):
    """There is no reference run, or it cannot be read."""


def keep(report: Report, directory: Path, *, as_reference: bool) -> list[str]:
    """Write the report and its plots; what to tell of that.

    The plots of a reference that was there before are replaced, too.
    """
    name = REFERENCE if as_reference else f"{report.date:%Y-%m-%d-%H%M%S}"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    report.write(path)
    return [f"values: {path}", plotted(report, directory / name)]


def plotted(report: Report, directory: Path) -> str:
    """Draw the plots; what to tell of that."""
    try:
        from bench import plots  # noqa: PLC0415  # matplotlib: only where plots are wanted
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != "matplotlib":
            raise
        return NO_PLOTS
    for old in (*directory.glob("*.png"), *directory.glob("*.svg")):
        old.unlink()
    return f"plots: {directory}: {', '.join(plots.draw(report, directory))}"


def reference_in(directory: Path) -> Report:
    """The run that others are compared with.

    Raises:
        UnusableReferenceError: there is none, or it is of another shape: make a new one.
    """
    path = directory / f"{REFERENCE}.json"
    try:
        return Report.read(path)
    except FileNotFoundError as exc:
        raise UnusableReferenceError(NO_REFERENCE.format(path=path)) from exc
    except msgspec.DecodeError as exc:
        raise UnusableReferenceError(f"{path} is no report ({exc}); make a new one") from exc
