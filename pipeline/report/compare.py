"""Compare several runs: scores, differences in the configuration, and the images whose pseudo masks changed most."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from pipeline.order import BY_NAME
from pipeline.report import figures, kinds, thumbnails
from pipeline.report.gallery import SIDE, MaskReader
from pipeline.report.images import ImageScores, score_images
from pipeline.report.page import render
from pipeline.report.scores import in_order, measured, percent, safely
from pipeline.runfolder.recorded import RecordedRun
from wsss.data.dataset import Dataset
from wsss.errors import ConfigError, WsssError
from wsss.families import FAMILIES
from wsss.files import write_text
from wsss.text import aligned

SHOWN = 48   # images that changed most
# The sections and keys that results depend on; the others set how and where a run works.
RESULT_KEYS = {*BY_NAME, *FAMILIES, "data", "seed", "precision", "seed_maps", "steps", "recipe_name", "experiment_name"}


@dataclass(frozen=True)
class Change:
    """The differences of an image's pseudo masks from the first run: shares of changed pixels and mIoU, by run."""

    image_id: str
    shares: tuple[float, ...]          # from the second run on
    miou: tuple[float | None, ...]     # of all runs
    scored: float | None = None        # the share of its pixels that was scored, in the first run


def check_runs(paths: Sequence[Path]) -> list[Path]:
    """The runs without duplicates. Raises ConfigError if there are fewer than two."""
    different = list(dict.fromkeys(paths))
    if len(different) < 2:
        given = ", ".join(path.name for path in different) or "none"
        raise ConfigError(f"action=compare needs at least two different runs, got: {given}. Set runs=[A,B]")
    return different


def write_comparison(runs: Sequence[RecordedRun], outputs: Path,
                     progress: Callable[[int, int, str], None]) -> tuple[str, Path]:
    """Write `compare-A-B.html` into `outputs`; return a text table and the path of the page.

    Raises ConfigError if the runs have different classes.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.dataset.classes != first.dataset.classes:
            raise ConfigError(f"action=compare: {first.folder.path} has the classes {', '.join(first.dataset.classes[:4])}, ..., "
                              f"{run.folder.path} has {', '.join(run.dataset.classes[:4])}, ...; expected runs on one data set")
    names, readers = names_of(runs), [MaskReader(run) for run in runs]
    scores, differences = score_tables(runs), config_differences(runs)
    changes, stats = mask_changes(runs, readers, progress)
    name = "-".join(names).replace("/", "-")
    if len(name.encode()) > 120:
        name = hashlib.sha256(name.encode()).hexdigest()[:16]
    path = outputs / f"compare-{name}.html"
    named = kinds.tones(kinds.of_runs([measured(run) for run in runs]))
    tiles = [tile for change in changes[:SHOWN]   # images that cannot be read are left out
             if (tile := safely(lambda change=change: _tile(first.dataset, names, readers, change), [], None))]
    write_text(path, render(
        "compare.html.j2", state="", tones=named, title=" / ".join(names), names=names, scores=scores, tiles=tiles,
        figure=_figure(runs, names), differences=differences, stats=stats, classes=["background", *first.dataset.classes],
        runs=[(name, str(run.folder.path), run) for name, run in zip(names, runs)]))
    return _screen(names, scores, differences, stats), path


def names_of(runs: Sequence[RecordedRun]) -> list[str]:
    """The names of the runs; equal names are preceded by the parent folder."""
    names = [run.folder.path.name for run in runs]
    return [f"{run.folder.path.parent.name}/{name}" if names.count(name) > 1 else name for run, name in zip(runs, names)]


def score_tables(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """A table for each set of measures, with a row for each kind and run: the scores, and their differences from the first run
    in points."""
    found, tables = [measured(run) for run in runs], []
    for group in kinds.grouped(kinds.of_runs(found)):
        heads, rows = in_order(next(iter(group.values()))), []
        for kind, score in group.items():
            for number, scores in enumerate(found):
                pairs = [(found[0].get(kind, {}).get(key), scores.get(kind, {}).get(key)) for key in heads]
                rows.append({"kind": kind, "title": score["title"], "run": number, "values": [value for _, value in pairs],
                             "differences": [None if number == 0 or None in pair or pair[0] == pair[1]
                                             else 100 * (pair[1] - pair[0]) for pair in pairs]})
        tables.append({"heads": list(heads.values()), "rows": rows})
    return tables


def config_differences(runs: Sequence[RecordedRun]) -> list[tuple[str, list[str]]]:
    """The keys that differ and can change a result, with the value of each run ("–" where a run has no such key)."""
    flat = [_flat(OmegaConf.to_container(run.composed, resolve=True)) for run in runs]
    keys = [key for key in dict.fromkeys(key for values in flat for key in values) if _counts(key)]
    rows = [(key, ["–" if key not in values else "null" if values[key] is None else str(values[key]) for values in flat])
            for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _counts(key: str) -> bool:
    """Whether a key can change a result: not those that steps declare as `LOG_ONLY`, except the names of lists."""
    first, *rest = key.split(".")
    log_only = first in BY_NAME and rest[0] in BY_NAME[first].LOG_ONLY and not rest[0].endswith("split")
    return first in RESULT_KEYS and not log_only


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: getattr(value, "name", value)}
    inner = [_flat(content, f"{prefix}.{key}" if prefix else key) for key, content in value.items()]
    return {name: leaf for flat in inner for name, leaf in flat.items()}


def mask_changes(runs: Sequence[RecordedRun], readers: Sequence[MaskReader],
                 progress: Callable[[int, int, str], None]) -> tuple[list[Change], list[dict[str, Any]]]:
    """The changes of the pseudo masks that all runs have, largest first, and statistics for each run from the second on."""
    if not all(run.place(run.masks) for run in runs):
        return [], []
    ids = sorted(set.intersection(*(read.made for read in readers)))
    scores = [safely(lambda run=run: score_images(run), [], ImageScores()) for run in runs]
    where = [score.place() for score in scores]

    def one(image_id: str) -> Change | None:
        try:
            masks = [read(image_id) for read in readers]
        except WsssError:   # damaged: it is listed in the report of that run
            return None
        if any(mask.shape != masks[0].shape for mask in masks):
            return None
        return Change(image_id, tuple(float((mask != masks[0]).mean()) for mask in masks[1:]),
                      tuple(float(score.miou[place[image_id]]) if image_id in place else None
                            for score, place in zip(scores, where)),
                      float(scores[0].scored[where[0][image_id]]) if image_id in where[0] else None)
    changes = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for number, change in enumerate(pool.map(one, ids), start=1):
            progress(number, len(ids), "masks compared")
            if change:
                changes.append(change)
    changes.sort(key=lambda change: (-max(change.shares), change.image_id))
    return changes, [_stats(changes, number) for number in range(1, len(runs))]


def _stats(changes: Sequence[Change], number: int) -> dict[str, Any]:
    shares = [change.shares[number - 1] for change in changes]
    rises = [change.miou[number] - change.miou[0] for change in changes if None not in (change.miou[0], change.miou[number])]
    return {"images": len(changes), "same": shares.count(0), "pixels": float(np.mean(shares)) if shares else 0.0,
            "scored": len(rises), "better": sum(rise > 0 for rise in rises), "worse": sum(rise < 0 for rise in rises)}


def _tile(dataset: Dataset, names: Sequence[str], readers: Sequence[MaskReader], change: Change) -> dict[str, Any]:
    """An image and its pseudo masks of all runs."""
    image_id = change.image_id
    shown = {"image": thumbnails.image(dataset.image(image_id), SIDE)}
    if image_id in dataset.mask_files:
        shown["ground truth"] = thumbnails.label(dataset.mask(image_id), SIDE)
    shown |= {name: thumbnails.label(read(image_id), SIDE) for name, read in zip(names, readers)}
    rises = [new - change.miou[0] for new in change.miou[1:] if None not in (new, change.miou[0])]
    tags = ["better"] * any(rise > 0 for rise in rises) + ["worse"] * any(rise < 0 for rise in rises)
    return {"id": image_id, "pictures": shown, "share": max(change.shares), "miou": change.miou,
            "scored": change.scored, "tags": tags,
            "labels": [index + 1 for index in dataset.labels[image_id]]}


def _figure(runs: Sequence[RecordedRun], names: Sequence[str]) -> str | None:
    drawn = kinds.with_first_measure(kinds.of_runs([measured(run) for run in runs]))
    if not drawn:
        return None
    first = next(iter(drawn.values()))
    main = kinds.main_name(first)
    values = 100 * np.array([[measured(run).get(kind, {}).get(main) for run in runs] for kind in drawn], float)   # None: NaN
    return figures.dots([score["title"] for score in drawn.values()], names, values, kinds.main_heading(first))


def _screen(names: Sequence[str], scores: list[dict[str, Any]], differences: list[tuple[str, list[str]]],
            stats: list[dict[str, Any]]) -> str:
    """The comparison as text: main measures of the stages, differing keys, changed masks."""
    parts: list[list[tuple[str, ...]]] = []
    for table in scores:
        parts.append([(f"{table['heads'][-1]}, percent", *names)])
        for start in range(0, len(table["rows"]), len(names)):
            of_kind = table["rows"][start:start + len(names)]
            parts[-1].append((of_kind[0]["title"], *(
                percent(row["values"][-1]) + ("" if (points := row["differences"][-1]) is None else f" ({points:+.1f})")
                for row in of_kind)))
    if differences:
        parts.append([("differs", *names), *((key, *values) for key, values in differences)])
    if stats:
        parts.append([("pseudo masks", *names), ("pixels changed", "", *(f"{100 * each['pixels']:.1f} %" for each in stats)),
                      ("images the same", "", *(f"{each['same']} of {each['images']}" for each in stats))])
        if any(each["scored"] for each in stats):
            parts[-1] += [("images better", "", *(str(each["better"]) for each in stats)),
                          ("images worse", "", *(str(each["worse"]) for each in stats))]
    return "\n\n".join("\n".join(aligned(part)) for part in parts) + "\n"
