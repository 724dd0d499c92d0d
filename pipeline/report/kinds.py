"""The kinds of results that are scored: three kinds of maps and the pseudo masks, in the order of the papers' tables."""

from collections.abc import Mapping
from typing import Any

TITLES = {"cam": "CAM", "lpcam_fg": "LPCAM-F", "lpcam": "LPCAM", "pseudo_masks": "pseudo masks"}
NAMES = {"miou": "mIoU", "fp": "FP", "fn": "FN", "precision": "precision", "recall": "recall"}   # of the scores
STEP_OF = {"cam": "make_cam", "lpcam_fg": "make_lpcam", "lpcam": "make_lpcam", "pseudo_masks": "make_sem_seg_labels"}


def measured(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of a summary by kind."""
    found = {**(summary.get("eval_cam") or {}), "pseudo_masks": summary.get("eval_sem_seg")}
    return {kind: found[kind] for kind in TITLES if found.get(kind)}
