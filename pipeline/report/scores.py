"""The tables of a report, as plain values for the template."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.order import scored_kind
from pipeline.plan.plan import DONE
from pipeline.report import kinds, thumbnails
from pipeline.report.images import ImageScores
from pipeline.report.published import not_comparable
from pipeline.report.tables import load_papers, measured_cells
from pipeline.runfolder.recorded import RecordedRun
from wsss.errors import WsssError
from wsss.text import duration, in_cell, mib


def percent(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{100 * value:.1f}"


def measured(run: RecordedRun) -> dict[str, dict[str, Any]]:
    """The scores by kind, in the order of the papers' tables."""
    return kinds.measured(run.summary)


def in_order(score: Mapping[str, Any]) -> dict[str, str]:
    """The headings of the measures of a score by name, the main one last."""
    main, *others = score["measures"]
    return {name: score["measures"][name] for name in (*others, main)}


def score_tables(run: RecordedRun) -> list[dict[str, Any]]:
    """A table for each set of measures, with a row for each kind: measured and published scores, further columns, threshold,
    its source, and oracle."""
    published = {(row["of"], row["score"]): row for row in (run.summary.get("published") or {}).get("rows", ())}
    tables = []
    for scores in kinds.grouped(measured(run)):
        first = next(iter(scores.values()))
        rows = [_score_row(kind, score, [_score_cell(score[name], published.get((kind, name))) for name in in_order(score)])
                for kind, score in scores.items()]
        tables.append({"heads": list(in_order(first).values()), "columns": list(first["columns"].values()), "rows": rows,
                       "with_oracle": any(row["oracle"] for row in rows)})
    return tables


def _score_row(kind: str, score: Mapping[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any]:
    oracle, threshold = score.get("oracle"), score.get("threshold")
    best = f"{percent(oracle[kinds.main_name(score)])} at {oracle['threshold']:.2f}" if oracle else None
    return {"kind": kind, "title": score["title"], "cells": cells, "images": score["images"], "oracle": best,
            "columns": [in_cell(score[name]) for name in score["columns"]], "source": score.get("threshold_source"),
            "threshold": "–" if threshold is None else f"{threshold:.2f}"}


def _score_cell(value: float | None, beside: Mapping[str, Any] | None) -> dict[str, Any]:
    difference = beside["difference"] if beside else None
    return {"value": percent(value), "published": f"{beside['published']:.1f}" if beside else None,
            "outside": bool(beside) and not beside["within"], "difference": None if difference is None else f"{difference:+.1f}"}


def headlines(run: RecordedRun) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The main scores: the measure, and (title, tone, percent) of each kind that has it."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    named = kinds.tones(measured(run))
    for kind, score in measured(run).items():
        shown = (score["title"], named[kind], percent(kinds.main_measure(score)))
        found.setdefault(kinds.main_heading(score), []).append(shown)
    return list(found.items())


def published_tables(run: RecordedRun) -> list[dict[str, Any]]:
    """All tables of a paper if this run's experiment reproduces a cell of it, as rows for the page."""
    found, published = [], run.config.published
    for paper in load_papers() if published else ():
        if not any(run.config.experiment_name in table.experiments for table in paper.tables):
            continue
        comparable = {key: scores for key, scores in measured(run).items()
                      if not not_comparable(published, scored_kind(key), scores)}
        for table in paper.tables:
            cells = measured_cells(table, run.config.experiment_name, comparable)
            found.append({"title": table.title, "paper": paper.paper, "notes": table.notes,
                          "columns": [column.name for column in table.columns], "measured": len(cells),
                          "of_experiment": run.config.experiment_name in table.experiments, "rows": [
                              {"group": row.group if i == 0 or row.group != table.rows[i - 1].group else None, "name": row.name,
                               "note": table.note(row), "cells": [_published_cell(table.cell(value), value, cells.get((i, j)))
                                                                  for j, value in enumerate(row.values)]}
                              for i, row in enumerate(table.rows)]})
    return found


def _published_cell(text: str, value: float | None, here: float | None) -> dict[str, Any]:
    beside = None if here is None else f"here {here:.1f}" + (f" ({round(here - value, 2):+.1f})" if value is not None else "")
    return {"value": text, "here": beside}


def class_rows(run: RecordedRun) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The titles of the kinds with an IoU of each class, and a row for each class and the background: the IoU of each kind, and
    the number of scored images with the class."""
    scores = {kind: score for kind, score in measured(run).items() if score.get("iou")}
    if not scores:
        return {}, []
    steps = [run.masks, *run.by_name] if run.masks else run.by_name
    shown = np.zeros(len(run.dataset.classes) + 1, int)
    for image_id in next(filter(None, map(run.scored, steps)), ()):
        shown[[0, *(index + 1 for index in run.dataset.labels[image_id])]] += 1
    return {kind: score["title"] for kind, score in scores.items()}, [
        {"value": value, "name": name, "colour": thumbnails.colour(value), "images": int(shown[value]),
         "iou": {kind: score["iou"][value] for kind, score in scores.items()}}
        for value, name in enumerate(["background", *run.dataset.classes])]


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
