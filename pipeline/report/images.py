"""The IoU of every scored image, computed once from the masks and stored in `report/images.npz`."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pipeline.runfolder.recorded import RecordedRun
from steps.runtime.artifacts import Labels, read_arrays, write_arrays
from steps.runtime.journal import INDEX, file_sum
from wsss.errors import ArtifactError, StorageError, WsssError
from wsss.palette import IGNORE

FILE, NEEDED = "images.npz", ("key", "ids", "miou", "first", "value", "iou", "scored")
LITTLE = 0.5   # an image of which a smaller share is scored is not shown as a good one: its IoU says little about its mask


@dataclass(frozen=True)
class ImageScores:
    """`miou` (N,) of the images `ids`: the mean over the labels in truth or mask, with background; `iou`: label -> IoU; `scored`
    (N,): the share of the pixels that were scored (`scored_pixels`)."""

    ids: tuple[str, ...] = ()
    miou: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    iou: tuple[dict[int, float], ...] = ()
    scored: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    failed: Mapping[str, str] = field(default_factory=dict)   # id -> why it could not be scored

    def place(self) -> dict[str, int]:
        return {image_id: place for place, image_id in enumerate(self.ids)}

    def best_first(self) -> list[str]:
        """The images by mIoU, without those of which less than `LITTLE` was scored."""
        return [self.ids[place] for place in np.argsort(-self.miou, kind="stable") if self.scored[place] >= LITTLE]


def image_iou(prediction: np.ndarray, truth: np.ndarray, ignore: str = "error") -> dict[int, float]:
    """The IoU of every label in the truth or the prediction, both (H, W) uint8; pixels with truth 255 are ignored.

    `ignore`: what a predicted 255 counts as: "background", else it is not counted.
    """
    counted = scored_pixels(prediction, truth, ignore)
    prediction = np.where(prediction == IGNORE, 0, prediction)
    predicted, true = prediction[counted], truth[counted]
    tp = np.bincount(true[predicted == true], minlength=256)
    union = np.bincount(true, minlength=256) + np.bincount(predicted, minlength=256) - tp
    return {int(value): float(tp[value] / union[value]) for value in np.flatnonzero(union)}


def scored_pixels(prediction: np.ndarray, truth: np.ndarray, ignore: str = "error") -> np.ndarray:
    """Which pixels (H, W) are scored: those whose truth is not 255, nor the prediction; the arguments as of `image_iou`."""
    return (truth != IGNORE) & ((prediction != IGNORE) | (ignore == "background"))


def score_images(run: RecordedRun, progress: Callable[[int, int], None] = lambda done, total: None) -> ImageScores:
    """The scores of all images with a mask of the run and ground truth, from the cache if nothing changed."""
    step, place = run.masks, run.place(run.masks)
    if step is None or place is None:
        return ImageScores()
    read = Labels(place, len(run.dataset.classes))
    ids = tuple(image_id for image_id in run.scored(step) or read.index
                if image_id in read.index and image_id in run.dataset.mask_files)
    if not ids:
        return ImageScores()
    ignore = run.ignore(step)
    path, key = run.folder.path / "report" / FILE, _key(run, step, place, ids, ignore)
    if (cached := _read(path, key)) is not None:
        return cached

    def one(image_id: str) -> tuple[dict[int, float], float] | str:
        try:
            mask, truth = read(image_id), run.dataset.mask(image_id)
            return image_iou(mask, truth, ignore), float(scored_pixels(mask, truth, ignore).mean())
        except WsssError as error:
            return str(error)
    found = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:   # decoding a PNG releases the GIL
        for result in pool.map(one, ids):
            found.append(result)
            progress(len(found), len(ids))
    good = [(image_id, *result) for image_id, result in zip(ids, found) if isinstance(result, tuple) and result[0]]
    scores = ImageScores(tuple(image_id for image_id, _, _ in good),
                         np.array([np.mean(list(iou.values())) for _, iou, _ in good], np.float32),
                         tuple(iou for _, iou, _ in good), np.array([scored for *_, scored in good], np.float32),
                         {image_id: why for image_id, why in zip(ids, found) if isinstance(why, str)})
    if not scores.failed:
        with suppress(StorageError):   # the run may be read-only
            _write(path, key, scores)
    return scores


def _key(run: RecordedRun, step: str, place: Path, ids: Sequence[str], ignore: str) -> str:
    index = file_sum(place / INDEX) if (place / INDEX).exists() else len(ids)
    facts = (run.by_name[step].fingerprint, index, ignore, run.dataset.digest_of_masks(ids))
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _read(path: Path, key: str) -> ImageScores | None:
    """The cached scores; None if there are none or their key differs."""
    try:
        arrays = read_arrays(path, NEEDED)
    except ArtifactError:
        return None
    if str(arrays["key"]) != key:
        return None
    bounds = arrays["first"].tolist()
    iou = [dict(zip(arrays["value"][start:stop].tolist(), arrays["iou"][start:stop].tolist()))
           for start, stop in zip(bounds[:-1], bounds[1:])]
    return ImageScores(tuple(arrays["ids"].tolist()), arrays["miou"], tuple(iou), arrays["scored"])


def _write(path: Path, key: str, scores: ImageScores) -> None:
    flat = [pair for iou in scores.iou for pair in iou.items()]
    write_arrays(path, key=np.array(key), ids=np.array(scores.ids, dtype=str), miou=scores.miou,
                 first=np.cumsum([0, *map(len, scores.iou)]), value=np.array([value for value, _ in flat], np.uint8),
                 iou=np.array([iou for _, iou in flat], np.float32), scored=scores.scored)
