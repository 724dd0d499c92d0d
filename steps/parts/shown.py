"""What several steps show in the report: the losses of a training, threshold curves, and columns of the image traces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.parts.thresholds import THRESHOLD
from steps.runtime.artifacts import Labels, Maps, read_array, read_arrays, read_json
from steps.runtime.context import StepContext
from steps.runtime.schedule import LOG
from steps.runtime.store import Store
from steps.step import Centre, Column, Curve, Line, Sheet, Table

if TYPE_CHECKING:
    from steps.parts.walk import Walk

ON_SCORED, ON_VAL = "On the scored images", "On the val images, which chose"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log of a training; [] if it has none yet."""
    path = folder / LOG
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def loss_curves(context: StepContext, log: Sequence[Mapping[str, Any]], losses: Mapping[str, str]) -> Iterator[Curve]:
    """The `losses` (name -> title) over the training steps, as far as they are in the log."""
    lines = [line for line in log if "loss" in line]
    drawn = [Line([line["step"] for line in lines], [line[name] for line in lines], title) for name, title in losses.items()
             if lines and all(name in line for line in lines)]
    if drawn:
        yield Curve(f"{context.name}: {'loss' if len(losses) == 1 else 'losses'}", "step", "loss", drawn)


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


def label_column(context: StepContext, title: str) -> Column:
    labels = Labels(context.folder, len(context.dataset.classes))
    return Column(title, "label", labels.index, lambda image_id: labels(image_id) if image_id in labels.index else None)


def walk_columns(context: StepContext) -> Iterator[Column]:
    """The edge map and the walked maps: read if `save_soft` kept them, else computed if the step uses or tries the walk."""
    walked = _Walked(context)
    yield Column("edge map", "map", walked.ids, lambda image_id: walked(image_id)[0])
    yield Column("random walk", "maps", walked.ids, lambda image_id: walked(image_id)[1])


class _Walked:
    """Returns the edge map (h, w) and the walked maps (K, h, w) of an image, float32, or (None, None)."""

    def __init__(self, context: StepContext):
        from steps.runtime.networks import WEIGHTS

        self.context, self._kept = context, Store(context.folder)
        reads = context.reads("seeds") and context.reads("irn") and (context.input("irn") / WEIGHTS).exists()
        self._maps = Maps(context.input("seeds")) if reads else None
        self.ids = context.ids if reads else self._kept.index
        self._walk: Walk | None = None
        self._last: tuple[str, tuple[np.ndarray | None, np.ndarray | None]] = "", (None, None)   # two columns read it

    def __call__(self, image_id: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        if self._last[0] != image_id:
            self._last = image_id, self._make(image_id)
        return self._last[1]

    def _make(self, image_id: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        edge, walk = (self._kept.file(image_id, f"{name}/{image_id}.npy") for name in ("edge", "walk"))
        if edge.exists() and walk.exists():
            return read_array(edge, step := self.context.name).astype(np.float32), read_array(walk, step).astype(np.float32)
        if self._maps is None or image_id not in self._maps.index:
            return None, None
        if self._walk is None:
            from steps.parts.walk import Walk

            self._walk = Walk(self.context, self._maps)
        walked, edges = self._walk(image_id)
        return edges.cpu().numpy(), walked.cpu().numpy()


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
