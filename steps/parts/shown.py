"""What several steps show in the report: the losses of a training, threshold curves, and columns of the image traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from steps.parts.pieces import Adjustable, Centre, Column, Curve, Line, Sheet, Table
from steps.parts.thresholds import THRESHOLD
from steps.runtime.artifacts import Labels, Maps, read_arrays, read_json
from steps.runtime.context import StepContext
from steps.runtime.schedule import LOG
from wsss.errors import ArtifactError
from wsss.reading import parse_json

ON_SCORED, ON_VAL = "On the scored images", "On the val images, which chose"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log of a training; [] if it has none yet. Raises ArtifactError for a damaged one."""
    path = folder / LOG
    try:
        lines = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        if all(isinstance(line, dict) for line in lines):
            return lines
        reason: object = "a line is no object"
    except (OSError, ValueError) as error:
        reason = error
    raise ArtifactError(f"{path} is damaged ({reason}). No result is read from it: move it away, then its curves are missing")


def loss_curves(context: StepContext, log: Sequence[Mapping[str, Any]], losses: Mapping[str, str]) -> Iterator[Curve]:
    """The `losses` (name -> title) over the training steps, as far as they are in the log."""
    lines = [line for line in log if "loss" in line]
    drawn = [Line([line["step"] for line in lines], [line[name] for line in lines], title) for name, title in losses.items()
             if lines and all(name in line for line in lines)]
    if drawn:
        yield Curve(f"{context.name}: {'loss' if len(losses) == 1 else 'losses'}", "step", "loss", drawn)


def val_curve(context: StepContext, log: Sequence[Mapping[str, Any]], key: str, title: str, heading: str) -> Iterator[Curve]:
    """A measure of val in [0, 1], `key` in the log, over the training steps; nothing if it was not measured."""
    if checked := [line for line in log if line.get(key) is not None]:
        line = Line([line["step"] for line in checked], [line[key] for line in checked], "val")
        yield Curve(f"{context.name}: {title} on val", "step", f"{heading}, percent", [line], percent=True)


def threshold_curve(title: str, lines: Sequence[Line]) -> Iterator[Curve]:
    """The mIoU in [0, 1] over the background threshold; nothing without lines."""
    if lines:
        yield Curve(title, "background threshold", "mIoU, percent", lines, percent=True, section="thresholds")


def map_columns(context: StepContext, titles: Mapping[str, str]) -> Iterator[Column]:
    """A column for each kind of maps (sub-folder -> title) that the step has made."""
    for folder, title in titles.items():
        if maps := Maps(context.folder, folder):
            yield Column(title, "maps", maps.index, partial(_map, maps))


def _map(maps: Maps, image_id: str) -> np.ndarray | None:
    return maps.at(image_id, "strided").numpy() if image_id in maps.index else None


def adjustable_maps(title: str, maps: Maps, settings: Mapping[str, float | None], after: str = "",
                    kind: str | None = None) -> Adjustable:
    """Stored maps whose thresholds, `settings`, can be tried in the report."""
    def read(image_id: str, size: Sequence[int]) -> tuple[Any, list[int]]:
        return maps.at(image_id, size), maps.classes(image_id)
    return Adjustable(title, maps.index, read, settings, after, kind)


def label_column(context: StepContext, title: str, kind: str = "") -> Column:
    labels = Labels(context.folder, len(context.dataset.classes), kind)
    return Column(title, "label", labels.index, lambda image_id: labels(image_id) if image_id in labels else None)


def choice_on_val(context: StepContext) -> Iterator[Curve | Table]:
    """The curve of the threshold of the masks that was chosen on val, and the refiners that were tried there."""
    path = context.folder / THRESHOLD
    if not path.exists():
        return
    chosen = read_json(path)
    if curve := chosen.get("val_miou"):
        marks = [] if chosen["threshold"] is None else [(chosen["threshold"], True)]
        yield from threshold_curve(ON_VAL, [Line(np.linspace(0, 1, len(curve)).tolist(), curve, kind=context.name, marks=marks)])
    if tried := chosen.get("tried"):
        rows = [(trial["refiner"], f"{trial['threshold']:.2f}", "–" if trial["miou"] is None else f"{100 * trial['miou']:.1f}",
                 "chosen" * (trial["refiner"] == chosen["refiner"])) for trial in tried]
        yield Table("Refiners tried on val", ("refiner", "threshold", "mIoU, percent", ""), rows, "thresholds")


def prototype_sheets(path: Path, n_classes: int) -> Iterator[Sheet]:
    """The centres of every class in a `prototypes.npz`, the kept and most probable ones first; none without nearest features.

    Raises ArtifactError if the file cannot be read.
    """
    arrays = read_arrays(path, ("class_index", "is_background", "kept")) if path.exists() else {}
    if not {"near_id", "near_place", "probability"} <= arrays.keys():
        return

    def centre(row: int) -> Centre:
        patches = [(str(image_id), tuple(place)) for image_id, place in
                   zip(arrays["near_id"][row], arrays["near_place"][row].tolist()) if image_id]
        return Centre(float(arrays["probability"][row]), bool(arrays["kept"][row]), patches)

    def centres(index: int, background: bool) -> list[Centre]:
        mine = np.flatnonzero((arrays["class_index"] == index) & (arrays["is_background"] == background))
        return [centre(row) for row in mine[np.lexsort((-arrays["probability"][mine], ~arrays["kept"][mine]))]]
    for index in range(n_classes):
        yield Sheet(index, {"foreground": centres(index, False), "background": centres(index, True)})
