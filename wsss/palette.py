"""The meaning of mask values, and the PASCAL VOC palette, which all index PNGs written here use."""

import numpy as np

IGNORE = 255  #: mask value of an ignored pixel; 0 is background, i + 1 is class i


def _voc_palette() -> np.ndarray:
    """Bits 0, 3, 6 of an index give red, 1, 4, 7 green, 2, 5 blue; the lowest is the most significant (`VOClabelcolormap.m`)."""
    index = np.arange(256)[:, None]
    bits = (index >> np.arange(8)) & 1  # (256, 8), lowest first
    weight = 128 >> np.arange(8) // 3  # bits 0, 1, 2 -> 128, bits 3, 4, 5 -> 64, bits 6, 7 -> 32
    return np.stack([(bits[:, c::3] * weight[c::3]).sum(axis=1) for c in range(3)], axis=1).astype(np.uint8)


#: (256, 3) uint8 RGB: row i is the colour of mask value i; 0 (background) is black, 255 (ignore) is (224, 224, 192).
VOC_PALETTE = _voc_palette()
