"""Image traces: the results of each step for an image, one column per step, one row per class."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from pipeline.report import thumbnails
from pipeline.report.pieces import Pieces
from pipeline.runfolder.recorded import RecordedRun
from steps.parts.pieces import Column
from wsss.errors import WsssError

SIDE = 208          # pixels of the longer side of a picture
MOST_CLASSES = 4    # rows of one image
IMAGE, TRUTH, ERRORS = "image", "ground truth", "errors"   # columns beside those of the steps


@dataclass
class Trace:
    """`rows`: for each class its index and its pictures by column; pictures of no single class are in the first row."""

    image_id: str
    titles: list[str]                        # of all columns, in order
    rows: list[tuple[int | None, dict[str, str]]]
    missing: dict[str, str] = field(default_factory=dict)   # column -> why it is empty
    iou: float | None = None
    scored: float | None = None                             # the share of its pixels
    iou_by_label: dict[int, float] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return [column for column in self.titles if any(column in pictures_of for _, pictures_of in self.rows)]


class TraceMaker:
    """Makes traces of a run from the columns that its steps show."""

    def __init__(self, run: RecordedRun, found: Pieces):
        self.run = run
        self.columns: dict[str, Column] = {}
        self._masks: str | None = None   # the column with the masks of the run
        for step, piece in found:
            if not isinstance(piece, Column):
                continue
            title = f"{piece.title}, {step}" if piece.title in self.columns else piece.title
            self.columns[title] = piece
            if step == run.masks and piece.draw == "label":
                self._masks = title

    @property
    def available(self) -> list[str]:
        """The images of the last column that has some."""
        found: list[Collection[str]] = [column.ids for column in self.columns.values() if column.ids]
        return sorted(found[-1]) if found else []

    def __call__(self, image_id: str) -> Trace:
        run, trace = self.run, Trace(image_id, [IMAGE, *self.columns, TRUTH, ERRORS], [])
        full, image = run.dataset.full_image(image_id), run.dataset.image(image_id)
        classes = list(run.dataset.labels[image_id])
        trace.rows = [(index, {}) for index in classes[:MOST_CLASSES]] or [(None, {})]
        first, masks = trace.rows[0][1], {}
        first[IMAGE] = thumbnails.image(full, SIDE)
        for title, column in self.columns.items():
            array = _try(trace, title, lambda column=column: column.read(image_id))
            if array is None:
                continue
            if column.draw == "label":
                masks[title], first[title] = array, thumbnails.label(array, SIDE)
                continue
            for (_, shown), values in zip(trace.rows, [array] if column.draw == "map" else array):
                picture = thumbnails.image(values, SIDE) if column.draw == "pictures" else thumbnails.heat(values, image, SIDE)
                shown[title] = picture
        if image_id in run.dataset.mask_files:
            truth = run.dataset.mask(image_id)
            first[TRUTH] = thumbnails.label(truth, SIDE)
            if self._masks in masks:
                first[ERRORS] = thumbnails.errors(masks[self._masks], truth, SIDE)
        return trace


def _try(trace: Trace, title: str, make: Callable[[], Any]) -> Any:
    """The result of `make`; None, with the reason in the trace, if an artifact cannot be read."""
    try:
        return make()
    except WsssError as error:
        if str(error) not in trace.missing.values():   # columns may share what they read
            trace.missing[title] = str(error)
        return None
