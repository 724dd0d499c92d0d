"""Check the summary of a finished run: `python tests/check_summary.py outputs/NAME`. Prints the problems and exits with 1 if there are any."""

import json
import math
import sys
from pathlib import Path

RATIOS = ("miou", "fp", "fn", "precision", "recall")


def check_score(where: str, score: dict, n_classes: int) -> list[str]:
    """The problems of one score."""
    wrong = [f"{where}.{key} is {score[key]}" for key in RATIOS if score[key] is None or not 0 <= score[key] <= 1]
    known = [value for value in score["iou"] if value is not None]
    if len(score["iou"]) != n_classes or not known:
        wrong.append(f"{where}.iou has {len(score['iou'])} entries, {len(known)} of them numbers; expected {n_classes}")
    elif not math.isclose(score["miou"], sum(known) / len(known), abs_tol=1e-9):
        wrong.append(f"{where}.miou is {score['miou']}, not the mean of iou")
    if not (score["threshold_source"] and score["images"] > 0 and 0 <= score["threshold"] <= 1):
        wrong.append(f"{where}: threshold {score['threshold']} by {score['threshold_source']!r} on {score['images']} images")
    return wrong


def check(run: Path) -> list[str]:
    """The problems of the run in the folder `run`."""
    summary = json.loads((run / "summary.json").read_text())
    n_classes = len(summary["classes"])
    wrong = [] if len(summary["steps"]) == 8 else [f"steps are {list(summary['steps'])}, expected eight"]
    scores = summary["scores"]
    if list(scores) != ["make_cam", "make_lpcam_fg_only", "make_lpcam", "make_sem_seg_labels"]:
        return [*wrong, f"scores are of {list(scores)}, expected those of three kinds of maps and of the pseudo masks"]
    for kind, score in scores.items():
        wrong += check_score(kind, score, n_classes)
    masks, images = list((run / "make_sem_seg_labels").glob("*.png")), scores["make_sem_seg_labels"]["images"]
    if len(masks) != images:
        wrong.append(f"{len(masks)} pseudo masks for {images} scored images")
    return wrong


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]))
    if problems:
        sys.exit("\n".join(problems))
    print(f"{sys.argv[1]}: the summary is complete")
