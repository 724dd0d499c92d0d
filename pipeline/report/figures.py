"""Curves and matrices. SVG figures take colours and fonts from the page, so they fit light and dark mode; PNG figures use the
colours of light mode."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsss.files import replacing

# Placeholder colours, each replaced by a variable of the page's style sheet.
TONES = {name: f"#0101{number:02x}" for number, name in enumerate(
    ("ink", "muted", "line", "cam", "lpcam_fg", "lpcam", "pseudo_masks", "a", "b", "c", "d"), start=1)}
# The page's colours of light mode, for PNG figures.
COLOURS = dict(re.findall(r"--(\w+): (#\w+)", (Path(__file__).parent / "templates/page.css").read_text().partition("@media")[0]))
SERIES = ("a", "b", "c", "d")
MARKS = {"cam": "o", "lpcam_fg": "s", "lpcam": "D", "pseudo_masks": "^"}


def _style(tones: Mapping[str, str]) -> dict[str, Any]:
    """matplotlib's settings with the colours `tones` (name -> colour)."""
    ink, muted, line = (tones[name] for name in ("ink", "muted", "line"))
    return {"svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 9, "axes.edgecolor": line, "axes.linewidth": 0.8,
            "axes.labelcolor": muted, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
            "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.titlecolor": ink, "axes.titleweight": "bold",
            "grid.color": line, "grid.linewidth": 0.6, "xtick.color": muted, "ytick.color": muted, "xtick.major.size": 0,
            "ytick.major.size": 0, "text.color": ink, "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.6,
            "axes.axisbelow": True, "text.parse_math": False}


STYLE = _style(TONES)
MOST_POINTS = 400   # of a curve
_numbers = count()


@dataclass(frozen=True)
class Curve:
    """mIoU in [0, 1] over thresholds; `chosen` is the threshold in use, `oracle` the best one on the scored images."""

    kind: str
    title: str
    thresholds: Sequence[float]
    miou: Sequence[float]
    chosen: float | None = None
    oracle: float | None = None


def threshold_curves(curves: Sequence[Curve], title: str) -> str:
    """Plot mIoU over the background threshold, with a filled mark at the chosen threshold and a ring at the oracle's."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.4, 3.0)
        for curve in curves:
            tone, percent = TONES[curve.kind], 100 * np.array(curve.miou, float)
            axes.plot(curve.thresholds, percent, color=tone, label=curve.title)
            for threshold, filled in ((curve.oracle, False), (curve.chosen, True)):
                if threshold is not None:
                    at = np.interp(threshold, curve.thresholds, percent)
                    axes.plot([threshold], [at], MARKS[curve.kind], color=tone, markersize=6 if filled else 10,
                              markerfacecolor=tone if filled else "none", clip_on=False, zorder=4)
        axes.set(title=title, xlabel="background threshold", ylabel="mIoU, percent", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        _legend(figure, 4)
        return _svg(figure, title)


def training_curves(title: str, lines: dict[str, tuple[Sequence[float], Sequence[float]]], ylabel: str,
                    percent: bool = False) -> str:
    """Plot curves over training steps. Long ones are drawn as means of neighbouring steps, with their range."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.2, 2.6)
        for tone, (name, (steps, values)) in zip(SERIES, lines.items()):
            x, y = np.array(steps, float), np.array(values, float) * (100 if percent else 1)
            if len(x) > 40:
                groups = np.array_split(np.arange(len(x)), min(MOST_POINTS // 4, max(20, len(x) // 10)))
                low, high = [y[group].min() for group in groups], [y[group].max() for group in groups]
                x, y = (np.array([array[group].mean() for group in groups]) for array in (x, y))
                axes.fill_between(x, low, high, color=TONES[tone], alpha=0.15, linewidth=0)
            axes.plot(x, y, color=TONES[tone], label=name, marker="o" if len(x) <= 24 else None, markersize=3)
        axes.set(title=title, xlabel="step", ylabel=ylabel)
        axes.set_ylim(bottom=0)
        if len(lines) > 1:
            _legend(figure, 2)
        return _svg(figure, title)


def histogram(values: np.ndarray, title: str) -> str:
    """Plot the distribution of the mIoU of single images."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.4, 2.1)
        axes.hist(100 * values, bins=np.linspace(0, 100, 41), color=TONES["pseudo_masks"], rwidth=0.9)
        middle = 100 * float(np.median(values))
        axes.axvline(middle, color=TONES["ink"], linewidth=1)
        axes.annotate(f"median {middle:.1f}", (middle, 1), xycoords=("data", "axes fraction"), xytext=(4, -2),
                      textcoords="offset points", va="top", fontsize=8.5)
        axes.set(title=title, xlabel="mIoU of an image, percent", ylabel="images", xlim=(0, 100))
        axes.grid(axis="x", visible=False)
        axes.yaxis.get_major_locator().set_params(integer=True)
        return _svg(figure, title)


def confusion_matrix(counts: np.ndarray, names: Sequence[str], title: str) -> str:
    """Plot (C + 1, C + 1) pixel counts by truth (row) and prediction (column) as shares of the row."""
    share, n = row_shares(counts), len(names)
    cell = 0.42 if n <= 12 else 0.26 if n <= 30 else 0.12
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "font.size": 9 if n <= 12 else 7.5 if n <= 30 else 5}):
        figure, axes = _figure(cell * n + 1.2, cell * n + 1.1)
        axes.imshow(share, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks(range(n), names, rotation=90)
        axes.set_yticks(range(n), names)
        axes.set(xlabel="pseudo mask", ylabel="ground truth")
        axes.spines[:].set_visible(False)
        if n <= 21:
            for row, column in zip(*np.nonzero(share >= 0.005)):
                axes.text(column, row, f"{100 * share[row, column]:.0f}", ha="center", va="center", fontsize=8 if n <= 12 else 6,
                          color="#ffffff" if share[row, column] < 0.55 else "#000000")
        return _svg(figure, title)


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Each row of a matrix divided by its sum; rows of zeros are not changed."""
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)


def dots(titles: Sequence[str], runs: Sequence[str], values: np.ndarray, title: str) -> str:
    """Plot mIoU in percent (stages, runs) over the stages, one line per run; NaN values are left out."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.4, 2.9)
        for number, name in enumerate(runs):
            tone = TONES[SERIES[number % len(SERIES)]]
            axes.plot(range(len(titles)), values[:, number], color=tone, label=name, marker="osD^vPX*"[number % 8], markersize=6,
                      linestyle=("-", "--", ":", "-.")[number // len(SERIES) % 4])
        axes.set_xticks(range(len(titles)), titles)
        axes.set(title=title, ylabel="mIoU, percent", xlim=(-0.3, len(titles) - 0.7))
        _legend(figure, 2)
        return _svg(figure, title)


def change_scatter(before: np.ndarray, after: np.ndarray, kind: str, xlabel: str, ylabel: str) -> str:
    """Plot the mIoU (N,) in [0, 1] of each image in two stages; images with a gain are above the diagonal."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(3.3, 3.2)
        axes.plot([0, 100], [0, 100], color=TONES["muted"], linewidth=1)
        axes.plot(100 * before, 100 * after, MARKS[kind], color=TONES[kind], markersize=4, alpha=0.65, markeredgewidth=0)
        axes.set(title="mIoU of each image, percent", xlabel=xlabel, ylabel=ylabel, xlim=(0, 100), ylim=(0, 100), aspect="equal")
        return _svg(figure, f"{xlabel} and {ylabel}, image by image")


@contextmanager
def png(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure in `COLOURS` to draw into; write it as PNG afterwards."""
    with matplotlib.rc_context(_style(COLOURS)):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, columns: int) -> None:
    figure.legend(loc="outside lower left", ncols=columns, borderpad=0, handlelength=1.8)


def _svg(figure: Figure, title: str) -> str:
    """The figure as an `svg` element with unique ids, and with the fonts and ink of the page."""
    content = io.StringIO()
    with warnings.catch_warnings():   # the browser has glyphs that the measuring font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": title})
    text = content.getvalue()
    text = text[text.index("<svg"):]
    prefix = f"f{next(_numbers)}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}", text)
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)   # it would apply to the whole page
    text = re.sub(r"font: ((?:bold |[0-9]+ )?)([\d.]+px) [^;\"]*", lambda m: f"font-size: {m[2]}"
                  + (f"; font-weight: {m[1].strip()}" if m[1] else ""), text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    for name, tone in TONES.items():
        text = text.replace(tone, f"var(--{name})")
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()
    return re.sub(r"<svg[^>]*>", f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}" '
                  f'style="width: {float(width) * 96 / 72:.0f}px" role="img">', text, count=1)
