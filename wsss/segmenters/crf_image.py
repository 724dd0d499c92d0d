"""The image that the dense CRF of a segmentation sees, and the name of the masks before it. Imports no torch."""

from enum import Enum

import numpy as np

BEFORE_CRF = "before_crf"   # the name of the masks before the CRF; that of the masks themselves is ""
# deeplab-pytorch (3a634f2), configs/voc12.yaml, IMAGE.MEAN: blue, green, red
MEAN_BGR = (104.008, 116.669, 122.675)


class CrfImage(Enum):
    image = "image"                          # its colours
    official_wrapped = "official_wrapped"    # what deeplab-pytorch uses: see `wrapped`


def wrapped(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 RGB as the CRF of deeplab-pytorch (main.py, `process_logit`) sees it: the network's input, BGR
    minus `MEAN_BGR`, cast to uint8. The cast cuts off the fraction and counts negative numbers from 256, so a colour just below
    the mean becomes 255 and one just above it 0.
    """
    values = image[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    return (np.trunc(values).astype(np.int32) & 255).astype(np.uint8)
