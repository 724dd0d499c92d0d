"""Draw what each step of a finished run made of some images: `python docs/make_figure.py outputs/NAME ID [ID ...] [-o FILE.png]`.

The run must have been made with `make_sem_seg_labels.save_soft=true` (edge map and walked maps).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageDraw, ImageFont

from pipeline import config as configuration
from steps.runtime.artifacts import FG_ONLY, Maps
from steps.runtime.datasets import KINDS, open_dataset
from wsss.data.images import read_mask
from wsss.overlays import overlay_map
from wsss.palette import VOC_PALETTE

TITLES = ("image", "CAM", "LPCAM-F", "LPCAM", "confident label", "edge map", "random walk", "pseudo mask", "ground truth")
CELL, GAP, TITLE = 150, 6, 22


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.fromarray(values.astype(np.float32)).resize(size[::-1], Image.BILINEAR))


def trace(run: Path, dataset, image_id: str) -> list[np.ndarray]:
    """The nine pictures of one image; maps are shown for its class with the largest pseudo mask."""
    image, size = dataset.image(image_id), dataset.working_size(image_id)
    mask = read_mask(run / f"make_sem_seg_labels/{image_id}.png")
    stores = [Maps(run / "make_cam"), Maps(run / "make_lpcam", FG_ONLY), Maps(run / "make_lpcam")]
    classes = stores[0].classes(image_id)
    shown = int(np.argmax([(mask == index + 1).sum() for index in classes]))
    maps = [overlay_map(image, store.at(image_id, "full")[shown].numpy()) for store in stores]
    edge, walk = (np.load(run / f"make_sem_seg_labels/{kind}/{image_id}.npy").astype(np.float32) for kind in ("edge", "walk"))
    label = read_mask(run / f"cam_to_ir_label/{image_id}.png")
    colours = [VOC_PALETTE[values] for values in (label, mask, dataset.mask(image_id))]
    return [dataset.full_image(image_id), *maps, colours[0], overlay_map(image, resized(edge, size)),
            overlay_map(image, resized(walk[shown], size)), colours[1], colours[2]]


def draw(rows: list[list[np.ndarray]]) -> Image.Image:
    """The traces below one another, with a line of titles."""
    heights = [round(CELL * row[0].shape[0] / row[0].shape[1]) for row in rows]
    width = len(TITLES) * (CELL + GAP) + GAP
    sheet = Image.new("RGB", (width, TITLE + GAP + sum(heights) + GAP * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(TITLES):
        pen.text((GAP + column * (CELL + GAP), 3), title, fill="black", font=ImageFont.load_default(size=15))
    top = TITLE + GAP
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture).resize((CELL, height)), (GAP + column * (CELL + GAP), top))
        top += height + GAP
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("ids", nargs="+")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/steps.png"))
    arguments = parser.parse_args()
    configuration.register()
    data = OmegaConf.load(arguments.run / "config.yaml").data
    dataset = open_dataset(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(KINDS[data.kind].settings), data)))
    with torch.inference_mode():
        draw([trace(arguments.run, dataset, image_id) for image_id in arguments.ids]).save(arguments.output)


if __name__ == "__main__":
    main()
