"""Maps and masks on images."""

import numpy as np
import pytest

from wsss.data.images import read_image
from wsss.errors import ArgumentError
from wsss.overlays import overlay_map, overlay_mask, write_picture
from wsss.palette import VOC_PALETTE

IMAGE = np.full((4, 6, 3), 100, np.uint8)


def test_a_map_of_zero_leaves_the_image_and_more_heat_shows_more():
    values = np.zeros((4, 6), np.float32)
    assert np.array_equal(overlay_map(IMAGE, values), IMAGE)
    values[0] = [0, 0.25, 0.5, 0.75, 1, 7]
    picture = overlay_map(IMAGE, values)
    moved = np.abs(picture[0].astype(int) - 100).sum(axis=1)
    assert picture.dtype == np.uint8 and (np.diff(moved[2:5]) > 0).all() and moved[5] == moved[4]
    assert np.array_equal(overlay_map(IMAGE, values, strength=0), IMAGE)
    assert np.array_equal(overlay_map(IMAGE, np.full((4, 6), np.nan)), IMAGE)


def test_a_mask_has_the_colours_of_voc_and_background_stays():
    mask = np.zeros((4, 6), np.uint8)
    mask[0, 0], mask[1, 1] = 1, 255
    picture = overlay_mask(IMAGE, mask, strength=1)
    assert picture[0, 0].tolist() == VOC_PALETTE[1].tolist() and picture[1, 1].tolist() == VOC_PALETTE[255].tolist()
    assert (picture[2:] == 100).all()


def test_a_picture_is_a_png(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(read_image(write_picture(tmp_path / "a/b.png", picture)), picture)


@pytest.mark.parametrize(("image", "values"), [(IMAGE, np.zeros((6, 4))), (IMAGE[..., 0], np.zeros((4, 6))), (IMAGE / 255, np.zeros((4, 6)))])
def test_what_does_not_fit_is_refused(image, values):
    for overlay in (overlay_map, overlay_mask):
        with pytest.raises(ArgumentError, match=r"expected uint8 \(H, W, 3\) and \(H, W\) of the same size"):
            overlay(image, values)
