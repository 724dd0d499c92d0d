"""The report on a user's folder: what was read from where, and what contradicts itself; and a picture of some images."""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from wsss.data.dataset import Dataset
from wsss.data.doubts import doubts_of
from wsss.data.findings import Finding
from wsss.data.images import resize_image, resize_mask, scaled_size
from wsss.overlays import overlay_mask, write_picture
from wsss.palette import IGNORE

_SHOWN = 4   # images in the picture
_SIDE = 320   # pixels of the long side of each
_LINE = 18   # height of the text above it
_GAP = 6


def folder_findings(dataset: Dataset, check: bool | Path) -> list[Finding]:
    """Rows on the images, labels, classes, masks and lists, a row for each class, and a row for each doubt."""
    per_class = Counter(index for present in dataset.labels.values() for index in present)
    in_list = {name: Counter(index for i in dataset.lists[name] for index in dataset.labels[i]) for name in ("train", "val")}
    none = sum(not dataset.labels[image_id] for image_id in dataset.lists["all"])
    counts = {"images": len(dataset.image_files), "labels": len(dataset.labels), "classes": len(dataset.classes),
              "masks": len(dataset.mask_files), "lists": len(dataset.lists) - 1, "colours": len(dataset.classes)}
    findings = [Finding(part, counts[part], None, text) for part, text in dataset.read_from.items()]
    findings += [Finding(f"images of class {name} (value {i + 1})", per_class[i], None,
                         f"{in_list['train'][i]} of train, {in_list['val'][i]} of val") for i, name in enumerate(dataset.classes)]
    findings.append(Finding("images without a class", none))
    doubts = doubts_of(dataset, check)
    if dataset.mask_files:
        findings.append(Finding("masks that differ from the label", len(doubts.contradicting), 0,
                                f"for example {doubts.contradicting[0]}" if doubts.contradicting else ""))
    told = len(doubts.failed) + len(doubts.problems)
    return [*findings, Finding("doubts about labels and masks", told, 0, "each is told below" if told else "")]


def draw_samples(dataset: Dataset, path: Path) -> Path:
    """Write a PNG of up to four images, of as many classes as possible, each beside its mask in VOC's colours."""
    rows = [_row(dataset, image_id) for image_id in _chosen(dataset)]
    picture = np.full((sum(len(row) for row in rows), max(row.shape[1] for row in rows), 3), 255, np.uint8)
    top = 0
    for row in rows:
        picture[top:top + len(row), :row.shape[1]] = row
        top += len(row)
    return write_picture(path, picture)


def _chosen(dataset: Dataset) -> list[str]:
    """Ids with masks, if there are any, each with a class that those before do not have as long as there is one."""
    ids = [i for i in dataset.lists["all"] if not dataset.mask_files or i in dataset.mask_files]
    chosen: list[str] = []
    seen: set[int] = set()
    while ids and len(chosen) < _SHOWN:
        best = max(ids, key=lambda i: len(set(dataset.labels[i]) - seen))
        seen |= set(dataset.labels[best])
        chosen.append(best)
        ids.remove(best)
    return chosen


def _row(dataset: Dataset, image_id: str) -> np.ndarray:
    image = dataset.full_image(image_id)
    size = scaled_size(image.shape[:2], _SIDE / max(image.shape[:2]))
    shown = resize_image(image, size)
    panels, names = [shown], ", ".join(dataset.classes[index] for index in dataset.labels[image_id]) or "no class"
    text = f"{image_id}: {names}"
    if image_id in dataset.mask_files:
        mask = resize_mask(dataset.mask(image_id), size)
        panels.append(overlay_mask(shown, mask))
        values = [value for value in np.unique(mask).tolist() if value]
        text += "   mask: " + (", ".join("not scored" if v == IGNORE else f"{dataset.classes[v - 1]} ({v})" for v in values)
                               or "background")
    row = Image.new("RGB", (2 * _SIDE + _GAP, size[0] + _LINE + _GAP), "white")
    ImageDraw.Draw(row).text((2, 1), text, fill="black", font=_font())
    for i, panel in enumerate(panels):
        row.paste(Image.fromarray(panel), (i * (_SIDE + _GAP), _LINE))
    return np.asarray(row)


def _font() -> FreeTypeFont:
    from matplotlib import font_manager  # slow to import

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 11)   # has the letters of most languages
