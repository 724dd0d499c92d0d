"""PASCAL VOC's folders: `SegmentationClass/NAME.png` with VOC's palette, `ImageSets/Segmentation/train.txt`, `JPEGImages/`.

`classes.txt` has a class per line, whose number is the mask value; `labelmap.txt` has their colours.
"""

from collections.abc import Iterable
from pathlib import Path

from wsss.annotations import MASKS, Options, Sheet
from wsss.annotations.colours import LIST, write_labelmap
from wsss.data.images import encode_mask
from wsss.files import write_bytes, write_text

IMAGES, SHAPES = "JPEGImages", (MASKS,)


def write(folder: Path, sheets: Iterable[Sheet], options: Options) -> None:
    seen, listed = set(), []
    for sheet in sheets:
        seen |= {value for value, _ in sheet.regions()}
        write_bytes(folder / "SegmentationClass" / f"{sheet.name}.png", encode_mask(sheet.mask))
        listed.append(f"{sheet.name}\n")
    write_text(folder / LIST / "train.txt", "".join(listed))
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in options.classes))
    write_labelmap(folder, seen, options)
