"""The tables and curves of a report, as plain values for the template."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.plan.plan import DONE
from pipeline.report import figures, kinds, thumbnails
from pipeline.report.images import ImageScores
from pipeline.report.kinds import TITLES
from pipeline.report.tables import cell, load_papers, measured_cells
from pipeline.runfolder.recorded import RecordedRun
from steps import eval_cam, eval_sem_seg
from steps.parts.thresholds import THRESHOLD
from steps.runtime.artifacts import read_arrays, read_json
from steps.runtime.context import settings_of
from steps.runtime.schedule import LOG
from wsss.errors import WsssError
from wsss.metrics.semantic import THRESHOLDS, ThresholdCounts
from wsss.text import duration, mib

SCORES = {"fp": "FP", "fn": "FN", "precision": "precision", "recall": "recall", "miou": "mIoU"}   # as in LPCAM, table 1
LOSSES = {"train_cam": ("loss",), "train_irn": ("pos_aff", "neg_aff", "dp_fg", "dp_bg")}
LOSS_TITLES = {"loss": "loss", "pos_aff": "affinity, same class", "neg_aff": "affinity, other class",
               "dp_fg": "displacement, foreground", "dp_bg": "displacement, background"}
CONFUSIONS = 12


def percent(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{100 * value:.1f}"


def measured(run: RecordedRun) -> dict[str, dict[str, Any]]:
    """The scores by kind, in the order of the papers' tables."""
    return kinds.measured(run.summary)


def score_rows(run: RecordedRun) -> list[dict[str, Any]]:
    """A row for each kind of map: measured and published scores, threshold, its source, and oracle."""
    published = {(row["of"], row["score"]): row for row in (run.summary.get("published") or {}).get("rows", ())}
    rows = []
    for kind, score in measured(run).items():
        cells = []
        for key in SCORES:
            beside = published.get((kind, key))
            cells.append({"value": percent(score[key]), "published": f"{beside['published']:.1f}" if beside else None,
                          "difference": f"{beside['difference']:+.1f}" if beside and beside["difference"] is not None else None,
                          "outside": bool(beside) and not beside["within"]})
        oracle, threshold = score.get("oracle"), score["threshold"]
        rows.append({"kind": kind, "title": TITLES[kind], "cells": cells, "images": score["images"],
                     "threshold": "–" if threshold is None else f"{threshold:.2f}", "source": score["threshold_source"],
                     "oracle": f"{percent(oracle['miou'])} at {oracle['threshold']:.2f}" if oracle else "–"})
    return rows


def published_tables(run: RecordedRun) -> list[dict[str, Any]]:
    """All tables of a paper if this run's experiment reproduces a cell of it, as rows for the page."""
    found, published = [], run.config.published
    for paper in load_papers() if published else ():
        if not any(run.config.experiment_name in table.experiments for table in paper.tables):
            continue
        for table in paper.tables:
            cells = measured_cells(table, run.config.experiment_name, measured(run), published.images)
            found.append({"number": table.number, "caption": table.caption, "paper": paper.paper, "notes": table.notes,
                          "columns": [column.name for column in table.columns], "measured": len(cells),
                          "of_experiment": run.config.experiment_name in table.experiments, "rows": [
                              {"group": row.group if i == 0 or row.group != table.rows[i - 1].group else None, "name": row.name,
                               "note": table.note(row), "cells": [_published_cell(value, cells.get((i, j)))
                                                                  for j, value in enumerate(row.values)]}
                              for i, row in enumerate(table.rows)]})
    return found


def _published_cell(value: float | None, here: float | None) -> dict[str, Any]:
    beside = None if here is None else f"here {here:.1f}" + (f" ({round(here - value, 2):+.1f})" if value is not None else "")
    return {"value": cell(value), "here": beside}


def class_rows(run: RecordedRun) -> list[dict[str, Any]]:
    """A row for each class and the background: IoU in percent of each kind of map, and the number of images with it."""
    scores = measured(run)
    if not scores:
        return []
    planned = run.by_name.get("eval_sem_seg") or run.by_name.get("eval_cam")
    ids = planned.lists["scored"] if planned else ()
    shown = np.zeros(len(run.dataset.classes) + 1, int)
    for image_id in ids:
        shown[[0, *(index + 1 for index in run.dataset.labels[image_id])]] += 1
    return [{"value": value, "name": name, "colour": thumbnails.colour(value), "images": int(shown[value]),
             "iou": {kind: score["iou"][value] for kind, score in scores.items()}}
            for value, name in enumerate(["background", *run.dataset.classes])]


def threshold_figures(run: RecordedRun) -> list[str]:
    """The threshold curves on the scored images and, if thresholds were chosen on val, on val."""
    scores = measured(run)
    scored = [figures.Curve(kind, TITLES[kind], score["curve"]["threshold"], score["curve"]["miou"], score["threshold"],
                            (score["oracle"] or {}).get("threshold"))
              for kind, score in _full_scores(run).items() if kind in scores and score.get("curve")]
    chosen_on = list(_val_curves(run))
    return [*([figures.threshold_curves(scored, "On the scored images")] if scored else []),
            *([figures.threshold_curves(chosen_on, "On the val images, which chose")] if chosen_on else [])]


def _full_scores(run: RecordedRun) -> dict[str, dict[str, Any]]:
    place = run.place("eval_cam")
    return read_json(place / eval_cam.SCORES)["scores"] if place and (place / eval_cam.SCORES).exists() else {}


def _val_curves(run: RecordedRun) -> Iterator[figures.Curve]:
    place = run.place("eval_cam")
    if place and (place / eval_cam.COUNTS).exists():
        chosen, full = read_json(place / eval_cam.SCORES)["chosen"], _full_scores(run)
        counts = read_arrays(place / eval_cam.COUNTS)
        for kind in ("cam", "lpcam_fg", "lpcam"):
            if f"{kind}_val" not in counts or kind not in chosen:
                continue
            grid = full[kind]["curve"]["threshold"] if kind in full else THRESHOLDS
            if counts[f"{kind}_val"].shape[2] == len(grid) + 1:
                table = ThresholdCounts(len(run.dataset.classes), grid, counts[f"{kind}_val"])
                yield figures.Curve(kind, TITLES[kind], grid, table.miou_curve(), chosen[kind]["threshold"])
    place = run.place("make_sem_seg_labels")
    if place and (place / THRESHOLD).exists():
        walk = read_json(place / THRESHOLD)
        if walk.get("val_miou"):
            yield figures.Curve("pseudo_masks", TITLES["pseudo_masks"], np.linspace(0, 1, len(walk["val_miou"])),
                                walk["val_miou"], walk["threshold"])


def training_figures(run: RecordedRun) -> list[str]:
    """The losses, validation scores and learning rate of each training."""
    found = []
    for step, losses in LOSSES.items():
        place = run.place(step)
        if place is None or not (place / LOG).exists():
            continue
        lines = [json.loads(line) for line in (place / LOG).read_text().splitlines()]
        of_steps = [line for line in lines if "loss" in line]
        curves = {LOSS_TITLES[name]: ([line["step"] for line in of_steps], [line[name] for line in of_steps]) for name in losses
                  if of_steps and all(name in line for line in of_steps)}
        if curves:
            found.append(figures.training_curves(f"{step}: {'loss' if len(losses) == 1 else 'losses'}", curves, "loss"))
        checked = [line for line in lines if line.get("val_map") is not None]
        if checked:
            found.append(figures.training_curves(f"{step}: mean average precision on val", {"val": (
                [line["step"] for line in checked], [line["val_map"] for line in checked])}, "mAP, percent", percent=True))
    return found


def confusion(run: RecordedRun) -> dict[str, Any] | None:
    """The confusion matrix of the pseudo masks, and its largest entries off the diagonal as shares of the true pixels."""
    place = run.place("eval_sem_seg")
    if place is None or not (place / eval_sem_seg.SCORES).exists():
        return None
    counts = np.array(read_json(place / eval_sem_seg.SCORES)["confusion"])
    names = ["background", *run.dataset.classes]
    share = figures.row_shares(counts)
    np.fill_diagonal(share, 0)
    worst = np.argsort(-share, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [(names[row], names[column], f"{100 * share[row, column]:.0f}") for row, column in
             zip(*np.unravel_index(worst, share.shape)) if share[row, column] > 0]
    return {"figure": figures.confusion_matrix(counts, names, "Confusion matrix"), "pairs": pairs, "wide": len(names) > 21}


def step_rows(run: RecordedRun) -> list[dict[str, Any]]:
    """A row for each step of the experiment: state, amount, time, memory, disk, machine."""
    rows = []
    for planned in run.plan:
        manifest = run.folder.manifest(planned.name) if planned.state == DONE else None
        row = {"name": planned.name, "state": planned.state, "why": planned.why, "failed": len(planned.failed)}
        if manifest:
            made, peak = manifest["made"], manifest["peak_memory_mb"]
            row |= {"amount": f"{made['total']:,} {planned.unit}" if made.get("total") else "",
                    "seconds": manifest["seconds"], "time": duration(manifest["seconds"]),
                    "rate": _rate(made, planned.unit), "host": mib(peak.get("host")), "cuda": mib(peak.get("cuda")),
                    "disk": mib(manifest["disk_mb"]), "finished": manifest.get("finished", ""),
                    "taken_from": manifest.get("taken_from"),
                    "machine": ", ".join(str(manifest[key]) for key in ("device", "precision") if key in manifest)
                    + (f", {manifest['threads']} threads" if "threads" in manifest else "")}
        rows.append(row)
    longest = max((row.get("seconds", 0) for row in rows), default=0)
    return [row | {"share": 100 * row.get("seconds", 0) / longest if longest else 0} for row in rows]


def _rate(made: dict[str, Any], unit: str) -> str:
    if not made.get("units") or not made.get("seconds"):
        return ""
    rate = made["units"] / made["seconds"]
    return f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit.removesuffix('s')}"


def versions(run: RecordedRun) -> list[tuple[str, str]]:
    """The package versions: (package, version), with the steps if versions differ."""
    found: dict[str, dict[str, list[str]]] = {}
    for planned in run.plan:
        manifest = run.folder.manifest(planned.name) if planned.state == DONE else None
        for package, version in ((manifest or {}).get("versions") or {}).items():
            found.setdefault(package, {}).setdefault(version, []).append(planned.name)
    return [(package, "; ".join(f"{version} ({', '.join(steps)})" if len(of) > 1 else version for version, steps in of.items()))
            for package, of in found.items()]


def absent(run: RecordedRun, scores: ImageScores) -> list[str]:
    """The parts that are missing in the report, with the reasons."""
    missing = [f"{planned.name}: {planned.state}" + (f" ({planned.why})" if planned.why else "")
               + (f", {planned.done:,} of {planned.total:,} {planned.unit}" if planned.state == "partial" else "")
               for planned in run.plan if planned.state != DONE]
    if "make_lpcam" not in run.by_name:
        missing.append("LPCAM: this experiment makes no LPCAM maps" + ("" if settings_of(run.config.seed_maps) == "lpcam" else
                                                                       "; the later steps use CAM (seed_maps=cam)"))
    if scores.failed:
        some = "; ".join(f"{image_id}: {why}" for image_id, why in list(scores.failed.items())[:3])
        missing.append(f"{len(scores.failed)} images could not be scored one by one ({some})")
    return missing


def safely(make: Any, missing: list[str], otherwise: Any) -> Any:
    """The result of `make`. If an artifact cannot be read, add the reason to `missing` and return `otherwise`."""
    try:
        return make()
    except WsssError as error:
        missing.append(str(error))
        return otherwise
