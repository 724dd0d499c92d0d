"""Score thresholds and walks on the stored maps of a finished run, and print the best settings."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.actions._finished import FinishedSteps
from pipeline.cluster.machine import prepared_process
from pipeline.order import BY_NAME, sources
from pipeline.plan.lists import derive_lists
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import require_finished
from steps.parts.tuning import Tuned, TuneSettings, Tuning, choosing_ids
from steps.runtime.artifacts import write_json
from steps.step import SCORE
from wsss.data.dataset import Dataset
from wsss.files import write_text
from wsss.text import csv_text

FOLDER = "tune"


@dataclass
class Settings:
    tune: TuneSettings


@dataclass(frozen=True)
class Result:
    """What each step found, and `labels`: the images that chose it."""

    labels: dict[str, Any]
    steps: dict[str, Tuned]

    def as_dict(self) -> dict[str, Any]:
        return {"labels": self.labels, **{name: tuned.result for name, tuned in self.steps.items()}}


def do(pipeline: Any) -> dict[str, Any]:
    """The scores by step, as the function `tune` of the step returns them, and "labels": the list it used. Writes nothing.

    Raises
    ------
    ConfigError
        if the run, its maps or the masks of `tune.split` do not exist, or that list is of test images.
    Stopped
        after SIGINT or SIGTERM.
    """
    return tune(pipeline).as_dict()


def run(pipeline: Any) -> int:
    result = tune(pipeline)
    folder = place_of(pipeline.folder, result.labels)
    write_tune(result, folder)
    for line in [*tune_lines(result), f"The run is unchanged. Curves and plot are in {folder}/"]:
        pipeline.console.result(line)
    return 0


def tune(pipeline: Any) -> Result:
    """Let each step of the experiment that can tune do so on the finished results that it reads. Raises as `do`."""
    pipeline.require_run()
    config = pipeline.config
    finished = FinishedSteps.read(config, pipeline.folder, config.steps)
    makers = [name for name in config.steps if BY_NAME[name].MAPS]
    if not finished.manifests.keys() & makers:
        require_finished(pipeline.folder, makers[:1], "tune")
    pipeline.console.start("tune")
    steps = [name for name in config.steps if BY_NAME[name].tune]
    read = {name for step in steps for names in sources(config, step).values() for name in (step, *names)}
    with (prepared_process(config.threads, pipeline.device), pipeline.reading(read & finished.manifests.keys()),
          pipeline.signals()):
        dataset, runtime = pipeline.dataset, pipeline.runtime(progress=pipeline.progress("tune"), warn=pipeline.console.warning)
        ids = choosing_ids(dataset, config.tune)
        tuning = Tuning(config.tune, ids)
        found = {name: BY_NAME[name].tune(finished.context(name, dataset, {"ids": ids}, runtime), tuning) for name in steps}
    return Result(_labels(config, dataset, ids), distinct({name: tuned for name, tuned in found.items() if tuned}))


def distinct(found: Mapping[str, Tuned]) -> dict[str, Tuned]:
    """What the steps found. If a table, or a line of a figure, has the same name as one of another step, both steps are named in
    all of their tables and lines."""
    names = {step: {*tuned.tables, *((curve.title, line.name) for curve in tuned.curves for line in curve.lines)}
             for step, tuned in found.items()}
    times = Counter(name for own in names.values() for name in own)
    return {step: _with_name(step, tuned) if any(times[name] > 1 for name in names[step]) else tuned
            for step, tuned in found.items()}


def _with_name(step: str, tuned: Tuned) -> Tuned:
    return replace(tuned, lines=[f"  {step}: {line.lstrip()}" for line in tuned.lines],
                   tables={f"{step}-{name}": rows for name, rows in tuned.tables.items()},
                   curves=[replace(curve, lines=[replace(line, name=f"{step}: {line.name}") for line in curve.lines])
                           for curve in tuned.curves])


def _labels(config: Any, dataset: Dataset, ids: tuple[str, ...]) -> dict[str, Any]:
    """The list whose masks were used, and how many of its images the run scores, too."""
    scored = set().union(*(lists.get("scored", ()) for name, lists in derive_lists(config, dataset).items()
                           if BY_NAME[name].KIND == SCORE))
    return {"list": config.tune.split, "held_out": config.tune.held_out, "images": len(ids),
            "also_scored": len(scored.intersection(ids))}


def place_of(folder: RunFolder, labels: dict[str, Any]) -> Path:
    """The folder of the result: `tune/LIST` of the run, one for each list."""
    part = f"-{labels['held_out']:g}" if labels["held_out"] else ""
    return folder.path / FOLDER / f"{Path(labels['list']).stem}{part}"


def write_tune(result: Result, folder: Path) -> None:
    """Write the tables of the steps, tune.png and finally tune.json."""
    for tuned in result.steps.values():
        for name, rows in tuned.tables.items():
            write_text(folder / name, csv_text(rows))
    _plot(result, folder / "tune.png")
    write_json(folder / "tune.json", result.as_dict())


def tune_lines(result: Result) -> list[str]:
    """The best values as text, the labels that chose them, and the command-line words that set them."""
    labels = result.labels
    part = f"{labels['held_out']:g} of " if labels["held_out"] else ""
    lines = [f"chosen by the masks of {labels['images']} images: {part}the list {labels['list']}"]
    if labels["also_scored"]:
        lines.append(f"{labels['also_scored']} of them are scored in this run too: these values are an oracle, not a result")
    lines += [line for tuned in result.steps.values() for line in tuned.lines]
    return [*lines, "to set them: " + " ".join(word for tuned in result.steps.values() for word in tuned.words)]


def _plot(result: Result, path: Path) -> None:
    """Draw the curves of all steps, those with one title in one figure."""
    from pipeline.report.figures import COLOURS, SERIES, merged, png  # imported here because it is slow

    curves = merged(curve for tuned in result.steps.values() for curve in tuned.curves)
    with png(path, 5 * len(curves), 4.2) as figure:
        for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves):
            for number, line in enumerate(curve.lines):
                x, y = np.array(line.x, float), np.array(line.y, float) * (100 if curve.percent else 1)
                colour, style = COLOURS[SERIES[number % len(SERIES)]], ("-", "--", ":", "-.")[number // len(SERIES) % 4]
                axes.plot(x, y, style, color=colour, label=line.name, marker="o" if len(x) <= 24 else None, markersize=4)
                for at, filled in line.marks:
                    axes.plot([at], [np.interp(at, x, y)], "o", color=colour, markersize=6 if filled else 10,
                              markerfacecolor=colour if filled else "none")
            axes.set(title=curve.title, xlabel=curve.xlabel, ylabel=curve.ylabel)
            axes.legend()
        labels = result.labels
        scored = ", scored too" * bool(labels["also_scored"])
        figure.suptitle(f"chosen by {labels['images']} images of {labels['list']}{scored}", fontsize="small")
