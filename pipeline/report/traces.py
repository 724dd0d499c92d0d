"""Image traces: the results of each step for an image, one column per step, one row per class."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report import thumbnails
from pipeline.runfolder.recorded import RecordedRun
from steps.parts.walk import Walk
from steps.runtime.artifacts import FG_ONLY, Labels, Maps, read_array
from steps.runtime.networks import WEIGHTS
from wsss.errors import WsssError

SIDE = 208          # pixels of the longer side of a picture
MOST_CLASSES = 4    # rows of one image
COLUMNS = ("image", "CAM", "LPCAM-F", "LPCAM", "confident label", "edge map", "random walk", "pseudo mask",
           "ground truth", "errors")


@dataclass
class Trace:
    """`rows`: for each class its index and its pictures by column; pictures of no single class are in the first row."""

    image_id: str
    rows: list[tuple[int | None, dict[str, str]]]
    missing: dict[str, str] = field(default_factory=dict)   # column -> why it is empty
    iou: float | None = None
    iou_by_label: dict[int, float] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return [column for column in COLUMNS if any(column in pictures_of for _, pictures_of in self.rows)]


class TraceMaker:
    """Makes traces of a run. Walked maps are read if `save_soft` stored them, else computed with the finished network."""

    def __init__(self, run: RecordedRun):
        self.run, n_classes = run, len(run.dataset.classes)
        self.maps = {title: store for title, step, kind in (("CAM", "make_cam", ""), ("LPCAM-F", "make_lpcam", FG_ONLY),
                                                            ("LPCAM", "make_lpcam", "")) if (store := _maps(run, step, kind))}
        self.labels = {title: Labels(place, n_classes)
                       for title, step in (("confident label", "cam_to_ir_label"), ("pseudo mask", "make_sem_seg_labels"))
                       if (place := run.place(step))}
        self._walk: Walk | None = None

    @property
    def available(self) -> list[str]:
        """The images with a pseudo mask; if there are none, those with maps."""
        for title in ("pseudo mask", "confident label"):
            if title in self.labels and self.labels[title].index:
                return sorted(self.labels[title].index)
        for title in ("LPCAM", "CAM"):
            if title in self.maps and self.maps[title].index:
                return sorted(self.maps[title].index)
        return []

    def __call__(self, image_id: str) -> Trace:
        run, trace = self.run, Trace(image_id, [])
        full, image = run.dataset.full_image(image_id), run.dataset.image(image_id)
        found = {title: maps for title, store in self.maps.items()
                 if (maps := _try(trace, title, lambda store=store: _of(store, image_id))) is not None}
        if (walked := _try(trace, "random walk", lambda: self._walked(image_id))) is not None:
            found["random walk"], edge = walked
        classes = list(run.dataset.labels[image_id])
        trace.rows = [(index, {}) for index in classes[:MOST_CLASSES]] or [(None, {})]
        for title, maps in found.items():
            for row, (_, shown) in enumerate(trace.rows[:len(maps)]):
                shown[title] = thumbnails.heat(maps[row], image, SIDE)
        first = trace.rows[0][1]
        first["image"] = thumbnails.image(full, SIDE)
        if walked is not None:
            first["edge map"] = thumbnails.heat(edge, image, SIDE)
        masks = {title: mask for title, read in self.labels.items() if image_id in read.index
                 and (mask := _try(trace, title, lambda read=read: read(image_id))) is not None}
        if image_id in run.dataset.mask_files:
            masks["ground truth"] = run.dataset.mask(image_id)
        for title, mask in masks.items():
            first[title] = thumbnails.label(mask, SIDE)
        if {"ground truth", "pseudo mask"} <= masks.keys():
            first["errors"] = thumbnails.errors(masks["pseudo mask"], masks["ground truth"], SIDE)
        return trace

    def _walked(self, image_id: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The walked maps (K, h, w) and the edge map (h, w); None if there is no network to compute them."""
        run = self.run
        if masks := self.labels.get("pseudo mask"):
            files = [masks.store.file(image_id, f"{kind}/{image_id}.npy") for kind in ("walk", "edge")]
            if files[0].exists():
                return tuple(read_array(file, "make_sem_seg_labels").astype(np.float32) for file in files)
        network, seeds = run.place("train_irn"), run.place(run.seed_step)
        if "make_sem_seg_labels" not in run.by_name or not network or not (network / WEIGHTS).exists() or not seeds:
            return None
        context = run.context("make_sem_seg_labels")
        if "train_irn" not in context.inputs:   # the refiner has no walk
            return None
        self._walk = self._walk or Walk(context, Maps(context.seed_folder))
        if image_id not in self._walk.maps.index:
            return None
        walked, edge = self._walk(image_id)
        return walked.cpu().numpy(), edge.cpu().numpy()


def _maps(run: RecordedRun, step: str, kind: str) -> Maps | None:
    place: Path | None = run.place(step)
    return Maps(place, kind) if place else None


def _of(store: Maps, image_id: str) -> np.ndarray | None:
    return store.map(image_id, "strided").numpy() if image_id in store.index else None


def _try(trace: Trace, title: str, make: Callable[[], Any]) -> Any:
    """The result of `make`; None, with the reason in the trace, if an artifact cannot be read."""
    try:
        return make()
    except WsssError as error:
        trace.missing[title] = str(error)
        return None
