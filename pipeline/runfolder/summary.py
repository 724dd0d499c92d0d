"""The summary of a run: the scores of the evaluation steps and the cost of each step, as JSON and as a table."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.order import made_from, scored_kind, titles
from pipeline.plan.plan import DONE, NOTHING, PlannedStep
from pipeline.report import stages
from pipeline.report.kinds import grouped, main_name, measured, title_of, with_titles
from pipeline.report.published import against, averages_note, without_comparison
from pipeline.runfolder.folder import RunFolder
from steps.step import SCORE, Score
from wsss.text import aligned, in_cell

SUMMARY = "summary.json"
NO_SCORES = "no scores: no evaluation step was run"
THRESHOLDS = {"threshold": "threshold", "oracle": "best possible"}   # columns beside the measures
UNDEFINED = "-: not defined, as no pixel of the masks of these images is of a class"
BEST_POSSIBLE = "best possible: the threshold that is best on the scored images (an oracle)"
LONG = {"kind", "curve", "confusion"}   # only in the files of the step


class Summary(dict[str, Any]):
    """The content of `summary.json`, which a notebook shows as tables."""

    def _repr_html_(self) -> str:
        """The scores as HTML tables."""
        parts = []
        for scores in grouped(measured(self)):
            heads, *rows = _rows(list(scores.values()))
            lines = [_html_row(heads, "th"), *(_html_row(row, "td") for row in rows)]
            parts.append(f"<table>{''.join(lines)}</table><p>{html.escape('. '.join(_notes(list(scores.values()))))}</p>")
        return "".join(parts) or f"<p>{html.escape(NO_SCORES)}</p>"


def _html_row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def build_summary(config: Any, folder: RunFolder, plan: list[PlannedStep], classes: tuple[str, ...]) -> dict[str, Any]:
    """The summary of all results that are up to date.

    "scores": kind of result (`Score.key`) -> title, kind of the maps that it was made from, step that scored it, measures and
    values; "unscored": step -> the ground truth that its list lacks; "tables": those of the steps that have some.
    """
    summary: dict[str, Any] = {"name": str(folder.path.name), "classes": ["background", *classes], "steps": {}, "scores": {}}
    found: dict[str, dict[str, Any]] = {}
    tables: list[dict[str, Any]] = []
    for planned in plan:
        if planned.state != DONE:
            continue
        manifest, place = folder.manifest(planned.name), folder.result(planned.name)
        summary["steps"][planned.name] = {key: manifest[key] for key in
                                          ("fingerprint", "seconds", "images", "peak_memory_mb", "disk_mb", "result")}
        if planned.step.KIND == SCORE:
            planned.step.reader(place, len(classes))
            found |= {score.key: _scored(planned.name, score) for score in planned.step.scores(place)}
            tables += [asdict(with_titles(table, summary)) for table in planned.step.tables(place)]
    summary["scores"] = {key: {"title": title_of(summary, key), "made_from": made_from(config, key), **found[key]}
                         for kind in titles() for key in found if scored_kind(key) == kind}
    if tables:
        summary["tables"] = tables
    summary["unscored"] = {planned.name: planned.step.TRUTH for planned in plan if planned.state == NOTHING}
    if config.published:
        summary["published"] = against(config.published, measured(summary))
    summary["stages"] = stages.describe(summary, stages.setting_in_use(config))
    return summary


def _scored(step: str, score: Score) -> dict[str, Any]:
    short = {key: value for key, value in score.values.items() if key not in LONG}
    return {"step": step, "measures": dict(score.measures), "columns": dict(score.columns), **short}


def score_table(summary: dict[str, Any]) -> str:
    """The scores as text tables, in percent: one for each set of measures."""
    lines: list[str] = []
    for scores in grouped(measured(summary)):
        lines += [*[""] * bool(lines), *_table(list(scores.values()))]
    for table in summary.get("tables", ()):
        lines += [*[""] * bool(lines), table["title"], *aligned([table["heads"], *table["rows"]])]
    for truth in dict.fromkeys(summary["unscored"].values()):
        steps = [step for step, lacking in summary["unscored"].items() if lacking == truth]
        lists = "their lists" if steps[1:] else "its list"
        lines.append(f"{', '.join(steps)}: nothing to score, because not all images of {lists} have {truth}")
    if summary.get("published") and measured(summary):
        lines += ["", *_published_lines(summary["published"], measured(summary))]
    return "\n".join(lines) or NO_SCORES


def _table(scores: list[Mapping[str, Any]]) -> list[str]:
    """The lines of a table of scores with the same measures."""
    return aligned(_rows(scores)) + _notes(scores)


def _rows(scores: list[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    known = [name for name in THRESHOLDS if any(score.get(name) is not None for score in scores)]
    columns = scores[0]["columns"]
    return [("", *scores[0]["measures"].values(), *(THRESHOLDS[name] for name in known), *columns.values(), "images"),
            *(_row(score, known) for score in scores)]


def _notes(scores: list[Mapping[str, Any]]) -> list[str]:
    """What the numbers of a table are."""
    configured = "in the configuration"   # the sources name single keys, which is too long for one line
    sources = {configured if source.endswith(configured) else source for score in scores
               if (source := score.get("threshold_source"))}
    undefined = any(score.get("miou", 0) is None for score in scores)
    oracle = any(score.get("oracle") is not None for score in scores)
    return ["in percent" + (f"; thresholds: {'; '.join(sorted(sources))}" if sources else ""), *[UNDEFINED] * undefined,
            *[BEST_POSSIBLE] * oracle]


def _row(score: Mapping[str, Any], known: list[str]) -> tuple[str, ...]:
    percents = tuple("-" if score[name] is None else f"{100 * score[name]:.1f}" for name in score["measures"])
    oracle, threshold = score.get("oracle"), score.get("threshold")
    cells = {"threshold": "-" if threshold is None else f"{threshold:.2f}",   # None for imported pseudo masks
             "oracle": f"{100 * oracle[main_name(score)]:.1f} at {oracle['threshold']:.2f}" if oracle else ""}
    columns = tuple(in_cell(score[name]) for name in score["columns"])
    return score["title"], *percents, *(cells[name] for name in known), *columns, str(score["images"])


def _published_lines(published: dict[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The published and measured scores, and the first step outside the tolerance."""
    refused = without_comparison(published)
    if refused and not published["rows"]:
        return [*refused, f"published: {published['source']}"]
    rows = [("", "score", "published", "measured", "difference", "")]
    rows += [(row["title"], scores[row["of"]]["measures"].get(row["score"], row["score"]), f"{row['published']:.1f}",
              f"{row['measured']:.1f}", f"{row['difference']:+.1f}", "" if row["within"] else "outside")
             for row in published["rows"]]
    first = published["first_outside"]
    verdict = f"the first step outside is {first}" if first else "all within"
    return [*aligned(rows), *refused, f"published: {published['source']}; tolerance {published['tolerance']} points: {verdict}",
            *filter(None, [averages_note(published)])]
