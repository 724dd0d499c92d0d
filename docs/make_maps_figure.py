"""Draw all kinds of maps of a finished run on some images, with the boxes that eval_loc found (white) and the true ones (green):
`python docs/make_maps_figure.py outputs/NAME ID [ID ...] [--also outputs/OTHER] [-o FILE.png]`.

An image is shown for its first class. The runs must have the step eval_loc, and the images must be on the lists that it scored.
Of the other run come the kinds of maps that the first lacks.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.report.pieces import pieces
from pipeline.runner import Pipeline
from steps.parts.pieces import Column

SIDE, GAP, LABEL = 118, 4, 150   # pixels: of a picture, between two, of the titles on the left


def pictures(run: Path, ids: list[str]) -> dict[str, list[np.ndarray]]:
    """Title -> a picture (H, W, 3) uint8 of each image: the images, then each kind of maps. Raises WsssError without one."""
    with ExitStack() as held:
        recorded = Pipeline.compose(f"outputs={run.parent}", f"name={run.name}").recorded(run, held)
        columns = [piece for step, piece in pieces(recorded, []) if step == "eval_loc" and isinstance(piece, Column)]
        return {"image": [recorded.dataset.full_image(image_id) for image_id in ids],
                **{column.title.partition(":")[0]: [column.read(image_id)[0] for image_id in ids] for column in columns}}


def draw(rows: dict[str, list[np.ndarray]]) -> Image.Image:
    """The rows below one another, each with its title on the left."""
    sheet = Image.new("RGB", (LABEL + (SIDE + GAP) * len(next(iter(rows.values()))), (SIDE + GAP) * len(rows)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for row, (title, shown) in enumerate(rows.items()):
        top = row * (SIDE + GAP)
        pen.text((4, top + SIDE // 2), title, fill="black", font=font, anchor="lm")
        for column, picture in enumerate(shown):
            tile = Image.fromarray(picture)
            tile.thumbnail((SIDE, SIDE))
            left = LABEL + column * (SIDE + GAP)
            sheet.paste(tile, (left + (SIDE - tile.width) // 2, top + (SIDE - tile.height) // 2))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("ids", nargs="+")
    parser.add_argument("--also", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/maps.png"))
    arguments = parser.parse_args()
    rows = pictures(arguments.run, arguments.ids)
    if arguments.also:
        rows |= {title: shown for title, shown in pictures(arguments.also, arguments.ids).items() if title not in rows}
    draw(rows).quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(arguments.output, optimize=True)


if __name__ == "__main__":
    main()
