"""Curves and matrices. SVG figures take colours and fonts from the page, so they fit light and dark mode; PNG figures use the
colours of light mode."""

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.order import titles
from pipeline.report.kinds import N_TONES, tones
from steps.parts.pieces import Curve
from wsss.files import replacing

# Placeholder colours, each replaced by a variable of the page's style sheet.
TONES = {name: f"#0101{number:02x}" for number, name in enumerate(
    ("ink", "muted", "line", "a", "b", "c", "d", *(f"k{n}" for n in range(1, N_TONES + 1))), start=1)}
# The page's colours of light mode, for PNG figures.
COLOURS = dict(re.findall(r"--(\w+): (#\w+)", (Path(__file__).parent / "templates/page.css").read_text().partition("@media")[0]))
SERIES = ("a", "b", "c", "d")
DASHES = ("--", ":")   # of controls
LEGEND_LINE = 0.17     # inches
FONT_MARGIN = 0.92     # the font of the page may be wider than the one that is measured
MARKS = {f"k{number}": mark for number, mark in enumerate("osDv^PX*", start=1)}   # as `.mark` in the style sheet


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
SAME = 0.005        # lines that differ by no more than this share of the greatest value coincide: they are 1 px apart
_numbers = count()


def colour(kind: str) -> str:
    """The colour of a kind of result in light mode, for PNG figures."""
    return COLOURS[tones([kind])[kind]]


def merged(curves: Iterable[Curve]) -> list[Curve]:
    """The curves in order; those with the same title as one, with the lines of all."""
    found: dict[str, Curve] = {}
    for curve in curves:
        before = found.get(curve.title)
        found[curve.title] = replace(before, lines=(*before.lines, *curve.lines)) if before else curve
    return list(found.values())


def plot(curve: Curve, named: Mapping[str, str] | None = None) -> str:
    """Plot a curve with its marks, filled or as rings. Long lines of a training are drawn as means of neighbouring steps.

    `named`: the tones of the kinds of results of the page, by default of those of the figure.
    """
    training = curve.section == "training"
    kinds = tones(line.kind for line in curve.lines if line.kind) | dict(named or {})
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.2, 2.6) if training else _figure(4.4, 3.0)
        names = [line.name or titles()[line.kind or ""] for line in curve.lines]
        under = coinciding([(line.x, line.y) for line in curve.lines])
        for number, line in enumerate(curve.lines):
            name = "muted" if line.control else kinds[line.kind] if line.kind else SERIES[number % len(SERIES)]
            x, y = np.array(line.x, float), np.array(line.y, float) * (100 if curve.percent else 1)
            before = sum(other.control for other in curve.lines[:number])
            style = DASHES[before % len(DASHES)] if line.control else dashes(under, number)
            _draw(axes, x, y, name, training, label=names[number], linestyle=style)
            for at, filled in line.marks:
                axes.plot([at], [np.interp(at, x, y)], MARKS.get(name, "o"), color=TONES[name], markersize=6 if filled else 10,
                          markerfacecolor=TONES[name] if filled else "none", clip_on=False, zorder=4)
        axes.set(title=curve.title, xlabel="\n".join([curve.xlabel, *sentences(under, names)]), ylabel=curve.ylabel)
        axes.set_ylim(bottom=0)
        if not training:
            axes.set_xlim(0, 1)
        if len(curve.lines) > 1 or curve.lines[0].kind:
            _legend(figure, 2 if training else 4)
        return _svg(figure, curve.title)


def coinciding(lines: Sequence[tuple[Sequence[float], Sequence[float | None]]]) -> list[int | None]:
    """For each line (x, y) the first of the earlier ones that it coincides with, None without one."""
    found: list[int | None] = []
    arrays = [(np.array(x, float), np.array(y, float)) for x, y in lines]
    greatest = max((np.abs(y[np.isfinite(y)]).max(initial=0) for _, y in arrays), default=0)
    for number, (x, y) in enumerate(arrays):
        found.append(next((before for before, (xs, ys) in enumerate(arrays[:number]) if found[before] is None
                           and x.shape == xs.shape and np.allclose(x, xs)
                           and np.allclose(y, ys, rtol=0, atol=SAME * greatest, equal_nan=True)), None))
    return found


def dashes(under: Sequence[int | None], number: int) -> Any:
    """The style of a line: dashed if it lies on earlier ones, which are seen in the gaps, each in its own."""
    if under[number] is None:
        return "-"
    together = [place for place, first in enumerate(under) if first == under[number]]
    return (4 * together.index(number), (4, 4 * len(together)))


def sentences(under: Sequence[int | None], names: Sequence[str]) -> list[str]:
    """A sentence for each group of lines that coincide."""
    groups = {first: [names[first], *(names[number] for number, each in enumerate(under) if each == first)]
              for first in dict.fromkeys(under) if first is not None}
    return [f"{', '.join(group[:-1])} and {group[-1]} coincide (dashed)." for group in groups.values()]


def _draw(axes: Axes, x: np.ndarray, y: np.ndarray, name: str, means: bool, **style: Any) -> None:
    """Draw a line, long ones as `means` of neighbouring values with their range."""
    if means and len(x) > 40:
        groups = np.array_split(np.arange(len(x)), min(MOST_POINTS // 4, max(20, len(x) // 10)))
        low, high = [y[group].min() for group in groups], [y[group].max() for group in groups]
        x, y = (np.array([array[group].mean() for group in groups]) for array in (x, y))
        axes.fill_between(x, low, high, color=TONES[name], alpha=0.15, linewidth=0)
    axes.plot(x, y, color=TONES[name], marker="o" if len(x) <= 24 else None, markersize=3, **style)


def histogram(values: np.ndarray, title: str) -> str:
    """Plot the distribution of the mIoU of single images."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.4, 2.1)
        axes.hist(100 * values, bins=np.linspace(0, 100, 41), color=TONES["c"], rwidth=0.9)
        middle = 100 * float(np.median(values))
        axes.axvline(middle, color=TONES["ink"], linewidth=1)
        axes.annotate(f"median {middle:.1f}", (middle, 1), xycoords=("data", "axes fraction"), xytext=(4, -2),
                      textcoords="offset points", va="top", fontsize=8.5)
        axes.set(title=title, xlabel="mIoU of an image, percent", ylabel="images", xlim=(0, 100))
        axes.grid(axis="x", visible=False)
        axes.yaxis.get_major_locator().set_params(integer=True)
        return _svg(figure, title)


def confusion_matrix(counts: np.ndarray, names: Sequence[str], title: str, predicted: str) -> str:
    """Plot (C + 1, C + 1) pixel counts by truth (row) and prediction (column) as shares of the row. `predicted`: their name."""
    share, n = row_shares(counts), len(names)
    cell = 0.42 if n <= 12 else 0.26 if n <= 30 else 0.12
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "font.size": 9 if n <= 12 else 7.5 if n <= 30 else 5}):
        figure, axes = _figure(cell * n + 1.2, cell * n + 1.1)
        axes.imshow(share, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks(range(n), names, rotation=90)
        axes.set_yticks(range(n), names)
        axes.set(xlabel=predicted, ylabel="ground truth")
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


def dots(stages: Sequence[str], runs: Sequence[str], values: np.ndarray, measure: str) -> str:
    """Plot a measure in percent (stages, runs) over the stages, one line per run; NaN values are left out."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.4, 2.9)
        under = coinciding([(range(len(stages)), column) for column in values.T])
        for number, name in enumerate(runs):
            axes.plot(range(len(stages)), values[:, number], color=TONES[SERIES[number % len(SERIES)]], label=name, markersize=6,
                      marker="osD^vPX*"[number % 8], linestyle=dashes(under, number) if under[number] is not None
                      else ("-", "--", ":", "-.")[number // len(SERIES) % 4])
        axes.set_xticks(range(len(stages)), stages)
        title = f"{measure} of the stages"
        axes.set(title=title, xlabel="\n".join(sentences(under, runs)), ylabel=f"{measure}, percent",
                 xlim=(-0.3, len(stages) - 0.7))
        _legend(figure, 2)
        return _svg(figure, title)


def change_scatter(before: np.ndarray, after: np.ndarray, kind: str, xlabel: str, ylabel: str) -> str:
    """Plot the mIoU (N,) in [0, 1] of each image in two stages; images with a gain are above the diagonal."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(3.3, 3.2)
        axes.plot([0, 100], [0, 100], color=TONES["muted"], linewidth=1)
        name = tones([kind])[kind]
        axes.plot(100 * before, 100 * after, MARKS[name], color=TONES[name], markersize=4, alpha=0.65, markeredgewidth=0)
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
    """A legend in as many columns as fit, at most `columns`; the figure grows with more than two lines of it."""
    for number in range(columns, 0, -1):
        legend = figure.legend(loc="outside lower left", ncols=number, borderpad=0, handlelength=1.8)
        if number == 1 or legend.get_window_extent().width <= FONT_MARGIN * figure.bbox.width:
            lines = -(-len(legend.get_texts()) // number)
            figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, lines - 2))
            return
        legend.remove()


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
    for name, placeholder in TONES.items():
        text = text.replace(placeholder, f"var(--{name})")
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()
    return re.sub(r"<svg[^>]*>", f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}" '
                  f'style="width: {float(width) * 96 / 72:.0f}px" role="img">', text, count=1)
