"""The images with gains and losses from the maps that a result was made from to that result, each at the threshold in use.

The maps are read from the run and thresholded. At most `MOST_SCORED` images are compared, chosen by a hash of their id, so that
the choice does not depend on the seed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.order import BY_NAME, made_from
from pipeline.report import figures, thumbnails
from pipeline.report.gallery import SIDE, MaskReader
from pipeline.report.images import LITTLE, image_iou
from pipeline.report.kinds import title_of
from pipeline.report.scores import measured, safely
from pipeline.report.stages import MARGIN
from pipeline.runfolder.recorded import RecordedRun
from steps.runtime.artifacts import Maps
from wsss.data.ids import smallest_hashes
from wsss.errors import WsssError
from wsss.palette import IGNORE
from wsss.refinement.masks import mask_of, with_background

MOST_SCORED = 400
MOST_CLASSES = 5   # with gains, and as many with losses, of each pair of stages


@dataclass(frozen=True)
class ImageChange:
    """The IoU of an image in two stages, by label; `before` and `after` are the means, in [0, 1]."""

    image_id: str
    before: float
    after: float
    labels: dict[int, tuple[float, float]]   # labels of truth or mask, background 0; a missing label has 0
    scored: float = 1.0                      # the share of its pixels whose truth is not 255

    @property
    def points(self) -> float:
        return 100 * (self.after - self.before)


@dataclass
class StageImages:
    """`changes`: (stage before, stage after) -> images, largest gain first. `failed`: id -> why it was left out."""

    compared: int = 0
    scored: int = 0
    changes: dict[tuple[str, str], list[ImageChange]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class StageMasks:
    """Reads the mask (H, W) uint8 of an image in each stage: the maps of a step at their threshold, or its masks."""

    def __init__(self, run: RecordedRun):
        self.run = run
        places = {name: place for name in run.by_name if (place := run.place(name))}
        self._thresholds = {kind: value for kind, score in measured(run).items() if (value := score.get("threshold")) is not None}
        self._maps = {name: Maps(place) for name, place in places.items()
                      if "" in BY_NAME[name].MAPS and name in self._thresholds}
        self._masks = {name: MaskReader(run, name) for name in places if BY_NAME[name].MASKS}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(stage before, stage) for each stage that was made from maps."""
        stages = [*self._maps, *self._masks]
        return [(before, name) for name in self.run.by_name if name in stages
                if (before := made_from(self.run.config, name)) in stages]

    def has(self, stage: str, image_id: str) -> bool:
        return image_id in (self._masks[stage].made if stage in self._masks else self._maps[stage].index)

    def __call__(self, stage: str, image_id: str, size: Sequence[int]) -> np.ndarray:
        """`size`: (H, W) of the ground truth. Raises WsssError if an artifact cannot be read."""
        if stage in self._masks:
            mask = self._masks[stage](image_id)
            keeps_255 = self.run.ignore(stage) != "background"
            return mask if keeps_255 else np.where(mask == IGNORE, 0, mask).astype(np.uint8)
        maps = self._maps[stage]
        soft = maps.at(image_id, size, self.run.runtime.device)
        return mask_of(with_background(soft, self._thresholds[stage]), maps.classes(image_id))


def compare_stages(run: RecordedRun, progress: Callable[[int, int], None] = lambda done, total: None) -> StageImages:
    """Compare each stage with the maps that it was made from, on the sampled images."""
    masks, found = StageMasks(run), StageImages()
    wanted: dict[tuple[str, str], set[str]] = {}
    scored: set[str] = set()
    for pair in masks.pairs:
        of_pair = [image_id for image_id in run.scored(pair[0]) if image_id in run.dataset.mask_files]
        scored.update(of_pair)
        if ids := {image_id for image_id in of_pair if all(masks.has(stage, image_id) for stage in pair)}:
            wanted[pair] = ids
    found.scored = len(scored)
    ids = sample(set().union(*wanted.values()))
    found.compared, found.changes = len(ids), {pair: [] for pair in wanted}
    for number, image_id in enumerate(ids, start=1):
        try:
            truth = run.dataset.mask(image_id)
            iou = {stage: image_iou(masks(stage, image_id, truth.shape), truth) for stage in dict.fromkeys(sum(wanted, ()))
                   if masks.has(stage, image_id)}
        except WsssError as error:
            found.failed[image_id] = str(error)
            continue
        for pair in wanted:
            if image_id in wanted[pair] and all(iou[stage] for stage in pair):
                found.changes[pair].append(_change(image_id, iou[pair[0]], iou[pair[1]], float((truth != IGNORE).mean())))
        progress(number, len(ids))
    for changes in found.changes.values():
        changes.sort(key=lambda change: (-change.points, change.image_id))
    return found


def sample(ids: Iterable[str], most: int = MOST_SCORED) -> list[str]:
    """The `most` ids with the smallest hash, sorted."""
    return sorted(smallest_hashes(ids, most))


def _change(image_id: str, before: dict[int, float], after: dict[int, float], scored: float) -> ImageChange:
    return ImageChange(image_id, float(np.mean(list(before.values()))), float(np.mean(list(after.values()))),
                       {value: (before.get(value, 0.0), after.get(value, 0.0)) for value in sorted({*before, *after})}, scored)


def stage_sections(run: RecordedRun, found: StageImages, missing: list[str]) -> list[dict[str, Any]]:
    """The page content of each pair of stages: numbers, a figure, and the images with the largest gains and losses.

    An image that cannot be read is left out, and the reason is added to `missing`.
    """
    masks, most, sections = StageMasks(run), run.config.report.changes, []
    if found.failed:
        some = "; ".join(f"{image_id}: {why}" for image_id, why in list(found.failed.items())[:3])
        missing.append(f"{len(found.failed)} images could not be compared from stage to stage ({some})")
    for pair, changes in found.changes.items():
        if not changes:
            continue
        points, titles = np.array([change.points for change in changes]), tuple(_title(run, kind) for kind in pair)
        good = [change for change in changes if change.scored >= LITTLE]
        ends = {"gained most": [change for change in good[:most] if change.points > MARGIN],
                "lost most": [change for change in changes[::-1][:most] if change.points < -MARGIN]}

        def tiles(some: list[ImageChange], pair=pair, titles=titles) -> list[dict[str, Any]]:
            made = [safely(lambda change=change: _tile(run, masks, pair, titles, change), missing, None) for change in some]
            return [tile for tile in made if tile is not None]
        before, after = (np.array([getattr(change, end) for change in changes]) for end in ("before", "after"))
        sections.append({
            "before": titles[0], "after": titles[1], "images": len(changes), "mean": float(points.mean()),
            "gained": int((points > MARGIN).sum()), "lost": int((points < -MARGIN).sum()),
            "classes": _class_changes(run, pair), "ends": {name: tiles(some) for name, some in ends.items()},
            "figure": figures.change_scatter(before, after, pair[1], *titles) if len(changes) > 1 else None})
    return sections


def _class_changes(run: RecordedRun, pair: tuple[str, str]) -> list[tuple[int, float, float]]:
    """(label, IoU before, IoU after) over all scored images, from the largest gain to the largest loss."""
    scores = [measured(run).get(stage, {}).get("iou", ()) for stage in pair]
    rows = [(value, *ious) for value, ious in enumerate(zip(*scores)) if None not in ious]
    rows.sort(key=lambda row: row[1] - row[2])
    return rows if len(rows) <= 2 * MOST_CLASSES else rows[:MOST_CLASSES] + rows[-MOST_CLASSES:]


def _title(run: RecordedRun, kind: str) -> str:
    """The title of a stage, with the name that its step gives to this result, for example that of the refiner."""
    title, score = title_of(run.summary, kind), measured(run).get(kind)
    name = BY_NAME[kind].named(title, score)[0] if score else title
    return name if title in name else f"{title} ({name})"


def _tile(run: RecordedRun, masks: StageMasks, pair: tuple[str, str], titles: tuple[str, str],
          change: ImageChange) -> dict[str, Any]:
    """Image, truth and the masks of both stages, and the classes by the size of their change."""
    image_id, truth = change.image_id, run.dataset.mask(change.image_id)
    shown = {"image": thumbnails.image(run.dataset.image(image_id), SIDE), "ground truth": thumbnails.label(truth, SIDE)}
    shown |= {title: thumbnails.label(masks(stage, image_id, truth.shape), SIDE) for title, stage in zip(titles, pair)}
    classes = sorted(change.labels.items(), key=lambda item: -abs(item[1][1] - item[1][0]))
    return {"id": image_id, "pictures": shown, "points": change.points, "before": change.before, "after": change.after,
            "scored": change.scored, "classes": [(value, *ious) for value, ious in classes]}
