"""Assemble the report of a run and write `report/report.html`."""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf

from pipeline.plan.fingerprint import as_set
from pipeline.report import figures, thumbnails
from pipeline.report.doubted import doubted, table_path
from pipeline.report.gallery import SIDE, TAGS, MaskReader, choose_shown, choose_traces, gallery_tile
from pipeline.report.images import LITTLE, ImageScores, score_images
from pipeline.report.kinds import title_of, tones
from pipeline.report.pieces import Pieces, matrices, of, pieces, section
from pipeline.report.prototypes import draw
from pipeline.report.published import averages_note, without_comparison
from pipeline.report.scores import (
    absent,
    class_rows,
    headlines,
    measured,
    percent,
    published_tables,
    safely,
    score_tables,
    step_rows,
    versions,
)
from pipeline.report.slider import slider
from pipeline.report.stage_images import StageImages, compare_stages, stage_sections
from pipeline.report.stages import MARGIN
from pipeline.report.traces import Trace, TraceMaker
from pipeline.runfolder.recorded import RecordedRun
from steps.parts.pieces import Matrix
from steps.runtime.context import own_methods, settings_of
from steps.runtime.journal import file_sum
from wsss.families import FAMILIES
from wsss.files import write_text
from wsss.palette import IGNORE, VOC_PALETTE

FOLDER, FILE = "report", "report.html"
MOST_MISSING = 12   # lines about missing parts
VERSION = 6   # raised when the page of an unchanged run changes


def report_path(run_folder: Path) -> Path:
    return run_folder / FOLDER / FILE


def write_report(run: RecordedRun, again: bool = True, progress: Callable[[int, int, str], None] | None = None) -> Path:
    """Write the report of a run from its folder; return the path of the report.

    If `again` is False, an existing report of the same results is kept.

    Raises
    ------
    WsssError
        if an artifact that the whole page needs cannot be read, or the page cannot be written. A part whose artifacts cannot
        be read is left out and listed in the page.
    """
    path, state = report_path(run.folder.path), _state(run)
    if not again and _state_of(path) == state:
        return path
    progress = progress or (lambda done, total, note: None)
    write_text(path, render("report.html.j2", state=state, **_content(run, progress)))
    return path


def _content(run: RecordedRun, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    unread: list[str] = []
    scores = safely(lambda: score_images(run, lambda done, total: progress(done, total, "masks compared")), unread, ImageScores())
    missing = absent(run, scores) + unread
    found = pieces(run, missing)
    maker = TraceMaker(run, found)
    shown = choose_shown(run, scores, maker.available)
    stage_images = safely(lambda: compare_stages(run, lambda done, total: progress(done, total, "stages compared")), missing,
                          StageImages())
    traces, tiles = _strips(run, maker, scores, missing), _tiles(run, scores, shown, missing)
    content = {
        "title": run.name, "missing": missing, "facts": _facts(run), "unscored": run.summary.get("unscored"),
        "histogram": figures.histogram(scores.miou, f"{len(scores.ids):,} images") if len(scores.ids) > 1 else None,
        "stage_images": stage_images, "stage_sections": stage_sections(run, stage_images, missing),
        "doubted": safely(lambda: doubted(run), missing, []),
        "traces": traces, "tiles": tiles, "tags": TAGS, "images_scored": len(scores.ids), "little": LITTLE,
        "errors": thumbnails.ERRORS,
        "slider": slider(run, found, shown, missing), "side": SIDE,
        "sheets": draw(run.dataset, found), **_of_scores(run), **_of_steps(run, found)}
    if len(missing) > MOST_MISSING:
        missing[MOST_MISSING:] = [f"and {len(missing) - MOST_MISSING} more"]
    return content


def _of_scores(run: RecordedRun) -> dict[str, Any]:
    with_iou, classes = class_rows(run)
    return {"headlines": headlines(run), "tones": tones(measured(run)), "scores": score_tables(run), "kinds": with_iou,
            "classes": classes, "published": run.summary.get("published"),
            "averages": averages_note(run.summary.get("published")),
            "without_comparison": without_comparison(run.summary.get("published")),
            "tables": published_tables(run), "stages": run.summary.get("stages"), "margin": MARGIN}


def _of_steps(run: RecordedRun, found: Pieces) -> dict[str, Any]:
    names, named = ["background", *run.dataset.classes], tones(measured(run))
    return {"names": names, "thresholds": section(found, "thresholds", named), "training": section(found, "training", named),
            "faithfulness": section(found, "faithfulness", named),
            "localisation": section(found, "localisation", named),
            "confusion": matrices(of(found, Matrix), names), "steps": step_rows(run), "versions": versions(run),
            "yaml": OmegaConf.to_yaml(run.composed, resolve=True)}


def _facts(run: RecordedRun) -> list[tuple[str, str]]:
    config, dataset = run.config, run.dataset
    lists = ", ".join(f"{len(ids):,} {name}" for name, ids in dataset.lists.items() if name != "all" and ids)
    finished = max((manifest.get("finished") or "" for planned in run.plan
                    if (manifest := run.folder.manifest(planned.name))), default="")
    return [("data set", f"{dataset.name}, {len(dataset.classes)} classes"), ("images", lists),
            ("recipe", config.recipe_name + (f", experiment {config.experiment_name}" if config.experiment_name else "")),
            *_methods(run),
            ("seed maps", title_of(run.summary, config.seed_maps)),
            ("seed", str(config.seed)), ("finished", finished or "not yet")]


def _methods(run: RecordedRun) -> list[tuple[str, str]]:
    """The method of each family that a step of the run uses, with its settings."""
    users = {family: [planned.name for planned in run.plan if family in planned.identity] for family in FAMILIES}
    own = {step: own_methods(getattr(run.config, step)) for step in run.config.steps}
    places = {family: getattr(run.config, family) for family, steps in users.items()
              if any(family not in own[step] or getattr(getattr(run.config, step), family) is None for step in steps)}
    places |= {f"{step}.{family}": method for step, families in own.items() for family in families
               if (method := getattr(getattr(run.config, step), family)) is not None}
    chosen = {key: settings_of(method) for key, method in places.items()}
    return [(key, ", ".join([settings.pop("method"), *(f"{name}={as_set(value)}" for name, value in settings.items())]))
            for key, settings in chosen.items()]


def _strips(run: RecordedRun, maker: TraceMaker, scores: ImageScores, missing: list[str]) -> list[Trace]:
    places, found = scores.place(), []
    for image_id in choose_traces(run, scores, maker.available):
        trace = safely(lambda image_id=image_id: maker(image_id), missing, None)
        if trace is None:
            continue
        missing += [f"{image_id}, {column}: {why}" for column, why in trace.missing.items()]
        if image_id in places:
            place = places[image_id]
            trace.iou, trace.iou_by_label = float(scores.miou[place]), scores.iou[place]
            trace.scored = float(scores.scored[place])
        found.append(trace)
    return found


def _tiles(run: RecordedRun, scores: ImageScores, shown: dict[str, set[str]], missing: list[str]) -> list[dict[str, Any]]:
    read, places, found = MaskReader(run), scores.place(), []
    for image_id, tags in shown.items():
        tile = safely(lambda image_id=image_id: gallery_tile(run, read, scores, places.get(image_id), image_id), missing, None)
        if tile is not None:
            found.append(tile | {"tags": sorted(tags)})
    return found


def _state(run: RecordedRun) -> str:
    """A digest of everything that the page shows and that can change in a run."""
    table = table_path(run.folder.path)
    facts = [VERSION, dict(run.summary), settings_of(run.config.report), file_sum(table) if table.exists() else None,
             [(planned.name, planned.state, planned.fingerprint, planned.done) for planned in run.plan]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _state_of(path: Path) -> str | None:
    """The digest in the head of a written report; None if there is no report."""
    try:
        with path.open(encoding="utf-8") as file:
            head = file.read(1024)
    except (OSError, ValueError):
        return None
    return head.partition('name="state" content="')[2].partition('"')[0] or None


def render(template: str, **content: Any) -> str:
    """A page with its style sheet and script inlined."""
    return _environment().get_template(template).render(**content)


@cache
def _environment() -> Environment:
    environment = Environment(loader=PackageLoader("pipeline.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
                              undefined=StrictUndefined)
    environment.filters["percent"] = percent
    environment.globals |= {"colour": thumbnails.colour, "ignored": f"#{VOC_PALETTE[IGNORE].tobytes().hex()}"}
    return environment
