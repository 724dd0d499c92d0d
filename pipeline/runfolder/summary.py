"""The summary of a run: the scores of the evaluation steps and the cost of each step, as JSON and as a table."""

from collections.abc import Mapping
from typing import Any

from pipeline.plan.plan import DONE, NOTHING, PlannedStep
from pipeline.report import stages
from pipeline.report.kinds import NAMES, TITLES, measured
from pipeline.report.published import Published, against, averages_note
from pipeline.runfolder.folder import RunFolder
from steps import eval_cam, eval_ins_seg, eval_sem_seg
from steps.runtime.artifacts import read_json
from wsss.text import aligned

SUMMARY = "summary.json"
LONG = {"curve", "confusion"}   # only in scores.json


def build_summary(folder: RunFolder, plan: list[PlannedStep], classes: tuple[str, ...],
                  published: Published | None = None, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The summary of all results that are up to date. Scores are None if there is no ground truth.

    `settings`: the values in use (`pipeline.report.stages.settings_in_use`), for the description of the stages.
    """
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
        if planned.name == "eval_ins_seg":
            summary["eval_ins_seg"] = _short(read_json(folder.result(planned.name) / eval_ins_seg.SCORES))
    for planned in plan:
        if planned.state == NOTHING:
            summary[planned.name] = None
    if published:
        summary["published"] = against(published, measured(summary))
    summary["stages"] = stages.describe(summary, settings)
    return summary


def score_table(summary: dict[str, Any]) -> str:
    """The scores as a text table, in percent."""
    rows = [("", *NAMES.values(), "threshold", "best possible", "images")]
    scores = measured(summary)
    rows += [_row(TITLES[kind], score) for kind, score in scores.items()]
    nothing = [step for step in ("eval_cam", "eval_sem_seg") if step in summary and summary[step] is None]
    lines = []
    if len(rows) > 1:
        lines = aligned(rows)
        configured = "in the configuration"   # the sources name single keys, which is too long for one line
        sources = {configured if score["threshold_source"].endswith(configured) else score["threshold_source"]
                   for score in scores.values()}
        lines.append(f"in percent; thresholds: {'; '.join(sorted(sources))}")
        lines.append("best possible: the threshold that is best on the scored images (an oracle)")
    if nothing:
        lines.append(f"{' and '.join(nothing)}: the data set has no masks, so there is nothing to score against")
    if "eval_ins_seg" in summary:
        lines += _instance_lines(summary["eval_ins_seg"])
    if summary.get("published") and scores:
        lines += ["", *_published_lines(summary["published"])]
    return "\n".join(lines) or "no scores: no evaluation step was run"


def _instance_lines(score: dict[str, Any] | None) -> list[str]:
    """The average precision of the instances; `score` None: no ground truth."""
    if score is None:
        return ["eval_ins_seg: the data set has no instances, so there is nothing to score against"]
    kinds = [(f"AP{100 * score['iou']:.0f}", score["ap"])]
    if coco := score["coco_style"]:
        kinds += [("COCO's AP50", coco["ap50"]), ("COCO's AP", coco["ap"])]
    values = ", ".join(f"{name} {'-' if value is None else f'{100 * value:.1f}'}" for name, value in kinds)
    return [f"instances: {values} percent; {score['detections']:,} detections, {score['objects']:,} objects, "
            f"{score['images']:,} images; threshold {score['threshold']:.2f}: {score['threshold_source']}"]


def _published_lines(published: dict[str, Any]) -> list[str]:
    """The published and measured scores, and the first step outside the tolerance."""
    if published["not_comparable"] is not None:
        return [f"published scores ({published['source']}) are of {published['images']:,} images, here "
                f"{published['not_comparable']:,} were scored: no comparison"]
    rows = [("", "score", "published", "measured", "difference", "")]
    rows += [(TITLES[row["of"]], NAMES[row["score"]], f"{row['published']:.1f}", f"{row['measured']:.1f}",
              f"{row['difference']:+.1f}", "" if row["within"] else "outside") for row in published["rows"]]
    first = published["first_outside"]
    verdict = f"the first step outside is {first}" if first else "all within"
    return [*aligned(rows), f"published: {published['source']}; tolerance {published['tolerance']} points: {verdict}",
            *filter(None, [averages_note(published)])]


def _row(title: str, score: dict[str, Any]) -> tuple[str, ...]:
    percents = tuple("-" if score[key] is None else f"{100 * score[key]:.1f}"
                     for key in NAMES)
    oracle = score.get("oracle")
    best = f"{100 * oracle['miou']:.1f} at {oracle['threshold']:.2f}" if oracle else ""
    threshold = "-" if score["threshold"] is None else f"{score['threshold']:.2f}"   # None for imported pseudo masks
    return (title, *percents, threshold, best, str(score["images"]))


def _short(score: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in score.items() if key not in LONG}
