"""What the forms of CVAT and PASCAL VOC share: a table of colours, the list of names, and masks in the colours."""

from pathlib import Path
from urllib.parse import quote

import numpy as np

from wsss.annotations import Options
from wsss.files import write_text
from wsss.palette import VOC_PALETTE

LABELMAP, LIST = "labelmap.txt", "ImageSets/Segmentation"


def write_labelmap(folder: Path, seen: set[int], options: Options) -> None:
    """Write `labelmap.txt`: the colour of background and of every class, as in VOC's palette."""
    rows = {0: "background", **options.names(seen)}
    lines = [f"{label(name)}:{','.join(map(str, VOC_PALETTE[value].tolist()))}::\n" for value, name in rows.items()]
    write_text(folder / LABELMAP, "# label:color_rgb:parts:actions\n" + "".join(lines))


def label(name: str) -> str:
    """A class name in labelmap.txt: ":", which separates its columns, and "#" in front, which begins a comment, are
    percent-encoded."""
    encoded = name.replace(":", "%3A")
    return quote(encoded[0], safe="") + encoded[1:] if encoded[:1] == "#" else encoded


def painted(numbers: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, the colours of VOC's palette."""
    return VOC_PALETTE[numbers]
