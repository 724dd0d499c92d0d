"""Run lengths of binary masks, as COCO and Segment Anything write them: column by column, beginning with background."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsss.data.headers import pillow_limit
from wsss.errors import DataError

_MOST = 2**40   # pixels of a run


def decode_rle(coded: Any) -> np.ndarray:
    """The mask (H, W) bool of `{"size": [H, W], "counts": ...}`; the counts are a list, or COCO's compressed text (str or bytes).

    Source: COCO's `common/maskApi.c`, `rleFrString` and `rleDecode`.
    Raises DataError if it is no such dictionary, or the counts do not fill the size.
    """
    size = rle_size(coded)
    runs = runs_of(coded["counts"], size)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def runs_of(counts: Any, size: tuple[int, int]) -> np.ndarray:
    """The run lengths, int64, of counts: a list, or COCO's compressed text (str or bytes). Raises DataError as `decode_rle`."""
    if isinstance(counts, list) and all(isinstance(count, int) and abs(count) < _MOST for count in counts):
        runs = np.array(counts, np.int64)
    else:
        runs = _from_text(counts if isinstance(counts, bytes) else str(counts).encode())
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise DataError(f"the counts of a mask fill {int(runs.sum())} pixels; expected {size[0] * size[1]}, as its size "
                        f"{list(size)} has: write the file again")
    return runs


def rle_size(coded: Any) -> tuple[int, int]:
    """(H, W) of run lengths. Raises DataError if they are no dictionary with `size` and `counts`."""
    size = coded.get("size") if isinstance(coded, Mapping) and "counts" in coded else None
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise DataError(f"a mask is {str(coded)[:60]!r}; expected run lengths {{\"size\": [height, width], \"counts\": ...}}: "
                        "write the file again")
    if (pixels := size[0] * size[1]) > pillow_limit():
        raise DataError(f"a mask has {pixels:,} pixels; expected at most {pillow_limit():,}: write the file again")
    return size[0], size[1]


def _from_text(text: bytes) -> np.ndarray:
    """Six bits a character: five of the number, lowest first, and whether more follow; from the fourth on, the difference to
    the last but one."""
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    last = codes & 0x20 == 0
    if not len(codes) or not last[-1] or (codes < 0).any() or (codes > 63).any():
        raise DataError(f"the counts of a mask are {text[:40]!r}; expected a list of whole numbers or COCO's compressed text: "
                        "write the file again")
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    lengths = np.diff([*starts, len(codes)])
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 0x1F) << shifts, starts)
    values -= (codes[last] >> 4 & 1) << 5 * lengths   # the sign
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values
