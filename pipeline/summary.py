"""The summary of a run: the scores of both evaluation steps and what each step cost, as JSON and as a table."""

from typing import Any

from pipeline.plan import DONE, NOTHING, PlannedStep
from pipeline.runfolder import RunFolder
from steps import eval_cam, eval_sem_seg
from steps.artifacts import read_json

LONG = {"curve", "confusion"}   # stay in scores.json
TITLES = {"cam": "CAM", "lpcam_fg": "LPCAM-F", "lpcam": "LPCAM"}


def build_summary(folder: RunFolder, plan: list[PlannedStep], classes: tuple[str, ...]) -> dict[str, Any]:
    """The summary of all results that are up to date. Scores are None where there is nothing to score against."""
    summary: dict[str, Any] = {"name": str(folder.path.name), "classes": ["background", *classes], "steps": {}}
    for planned in plan:
        if planned.state != DONE:
            continue
        manifest = folder.manifest(planned.name)
        summary["steps"][planned.name] = {key: manifest[key] for key in
                                          ("fingerprint", "seconds", "images", "peak_memory_mb", "disk_mb", "result")}
        if planned.step.kind == "score":
            planned.step.module.reader(folder.result(planned.name), len(classes))
        if planned.name == "eval_cam":
            scores = read_json(folder.result(planned.name) / eval_cam.SCORES)["scores"]
            summary["eval_cam"] = {kind: _short(score) for kind, score in scores.items()} or None
        if planned.name == "eval_sem_seg":
            summary["eval_sem_seg"] = _short(read_json(folder.result(planned.name) / eval_sem_seg.SCORES))
    for planned in plan:
        if planned.state == NOTHING:
            summary[planned.name] = None
    return summary


def score_table(summary: dict[str, Any]) -> str:
    """The scores as a table for the screen, in percent."""
    rows = [("", "mIoU", "FP", "FN", "precision", "recall", "threshold", "best possible", "images")]
    maps = summary.get("eval_cam") or {}
    rows += [_row(TITLES[kind], score) for kind, score in maps.items()]
    if summary.get("eval_sem_seg"):
        rows.append(_row("pseudo masks", summary["eval_sem_seg"]))
    nothing = [step for step in ("eval_cam", "eval_sem_seg") if step in summary and summary[step] is None]
    lines = []
    if len(rows) > 1:
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
                 for row in rows]
        sources = {score["threshold_source"] for score in [*maps.values(), *_scores_of(summary)]}
        lines.append(f"in percent; thresholds: {'; '.join(sorted(sources))}")
        lines.append("best possible: the threshold that is best on the scored images themselves (an oracle)")
    if nothing:
        lines.append(f"{' and '.join(nothing)}: the data set has no masks, so there is nothing to score against")
    return "\n".join(lines) or "no scores: no evaluation step was run"


def _scores_of(summary: dict[str, Any]) -> list[dict]:
    return [summary["eval_sem_seg"]] if summary.get("eval_sem_seg") else []


def _row(title: str, score: dict[str, Any]) -> tuple[str, ...]:
    percents = tuple("-" if score[key] is None else f"{100 * score[key]:.1f}"
                     for key in ("miou", "fp", "fn", "precision", "recall"))
    oracle = score.get("oracle")
    best = f"{100 * oracle['miou']:.1f} at {oracle['threshold']:.2f}" if oracle else ""
    return (title, *percents, f"{score['threshold']:.2f}", best, str(score["images"]))


def _short(score: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in score.items() if key not in LONG}
