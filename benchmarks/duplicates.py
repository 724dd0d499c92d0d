"""Precision and recall of the search for copies (wsss/data/duplicates.py): `python -m benchmarks.duplicates DATA`.

DATA is a folder of one's own (docs/own_data.md). Of each image copies are made: saved again as JPEG of quality 50, half the
size, mirrored, and cropped at a random place by 5 and by 10 % of each side. Recall is the share of the copies that are found
beside their original. Of the pairs of different images of DATA that count as copies, look at some: they may be copies in fact.
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.data import open_folder
from wsss.data.duplicates import closest, hashes
from wsss.seeding import generator


def made(image: Image.Image, draws: np.random.Generator) -> Iterator[tuple[str, Image.Image]]:
    """The name and the image of each copy."""
    width, height = image.size
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    yield "JPEG of quality 50", Image.open(file)
    yield "half the size", image.resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    yield "mirrored", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for percent in (5, 10):
        w, h = (round(side * (1 - percent / 100)) for side in (width, height))
        x, y = int(draws.integers(0, width - w + 1)), int(draws.integers(0, height - h + 1))
        yield f"cropped by {percent} %", image.crop((x, y, x + w, y + h))


def measure(root: Path) -> None:
    data, draws = open_folder(root, check=False), generator(0, "duplicates")
    originals, found = [], {}
    for image_id in data.lists["all"]:
        image = Image.fromarray(data.full_image(image_id))
        originals.append(hashes(image))
        for name, copy in made(image, draws):
            found.setdefault(name, []).append(hashes(copy))
    base, ids = np.stack(originals), data.lists["all"]
    for name, each in found.items():
        pairs = list(closest(base, np.stack(each)))
        print(f"{name:20} recall {sum(i == j for i, j, _ in pairs) / len(ids):.3f}   "
              f"precision {sum(i == j for i, j, _ in pairs) / max(len(pairs), 1):.3f}")
    false = sorted((distance, ids[i], ids[j]) for i, j, distance in closest(base, base) if i < j)
    print(f"{len(false)} of {len(ids) * (len(ids) - 1) // 2} pairs of different images count as copies",
          *(f"{one} {other} {distance:.3f}" for distance, one, other in false[:10]), sep="\n    ")


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(folder)
        measure(Path(folder))
