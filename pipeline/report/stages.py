"""Describe the effect of each stage of a run on the mIoU, with suggestions if a stage lowered it.

A stage is a kind of result; it is compared with the kind of maps that it was made from. What is specific to a step, it says
itself (`named`, `advice` and `remarks` of `steps.step`). Pure functions from a summary (`pipeline.runfolder.summary`) to
sentences: they read no files and compute no scores.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from pipeline.order import SEEDS, STEPS, maker
from pipeline.report.kinds import title_of
from steps.parts.outcome import MARGIN, Advice, Change, Outcome, Remark, noun, plural
from steps.parts.thresholds import RULE
from wsss.families import BaseMethod

MEASURE = "miou"    # scores without it are not compared
ORACLE_GAP = 1.0    # points; a larger gain of the best threshold is reported
FEW_VAL = 100       # with fewer val images, their number is named as the cause of a poor threshold
MOST_SUGGESTIONS = 3


def describe(summary: Mapping[str, Any], setting: Callable[..., Any] | None = None) -> dict[str, Any]:
    """The `headline` (one line, empty if no two stages can be compared) and the `remarks` of a summary, ready for JSON.

    A remark has the fields of `steps.step.Remark`; `verdict` ("better", "same", "worse") if it compares two stages; and
    `suggestions`, each with `setting` (KEY=VALUE for the command line, or None if the remedy is no setting) and `why`.

    `setting(key, default=None)`: the value in use (`setting_in_use`). Other keys and values already in use are not suggested.
    None: the values are unknown, so all suggestions are made.
    """
    run = _Run(summary, setting)
    changes = run.changes()
    remarks = [*run.of_steps(), *changes, *run.seeds(), *run.thresholds()]
    return {"headline": ", ".join(run.short(remark) for remark in changes if remark.points is not None),
            "remarks": [run.as_json(remark) for remark in remarks if remark.text]}


def setting_in_use(config: Any) -> Callable[..., Any]:
    """A function (key, default=None) that returns the value of a setting in a typed configuration, an enumeration by its value
    and a method by its name, and `default` if there is no such key."""
    def setting(key: str, default: Any = None) -> Any:
        value = config
        for name in key.split("."):
            value = value.get(name, _MISSING) if isinstance(value, dict) else getattr(value, name, _MISSING)
        value = value.method if isinstance(value, BaseMethod) else getattr(value, "value", value)
        return default if value is _MISSING else value
    return setting


def stage_lines(described: Mapping[str, Any]) -> list[str]:
    """The result of `describe` as lines of text; each suggestion has its own line, to be copied."""
    lines = [f"stages, in points of mIoU: {described['headline']}"] if described["headline"] else []
    for remark in described["remarks"]:
        suggestions = remark["suggestions"]
        lines.append(remark["text"] + (" Try:" if suggestions else ""))
        width = max((len(each["setting"] or "") for each in suggestions), default=0)
        lines += [f"  {each['setting'].ljust(width)}  {each['why']}" if each["setting"] else f"  {each['why']}"
                  for each in suggestions]
    return lines


_MISSING = object()


class _Run:
    """Makes the remarks from the scores of a summary and the settings in use."""

    def __init__(self, summary: Mapping[str, Any], setting: Callable[..., Any] | None):
        self.found, self.classes, self.known = summary.get("scores") or {}, summary.get("classes") or (), setting is not None
        self.setting = setting or (lambda key, default=None: default)
        self.results = {name: step.get("result") or {} for name, step in (summary.get("steps") or {}).items()}
        self.scores = {kind: score for kind, score in self.found.items() if _known(score.get(MEASURE))}
        self.outcome = Outcome(self.scores, self.results, self.setting, partial(title_of, summary))

    def noun(self, kind: str) -> str:
        return noun(self.found[kind]["title"])

    def named(self, kind: str) -> tuple[str, str]:
        """The name of a result in a headline and the beginning of a sentence about it, with the kind if several have the name."""
        names = {each: maker(each).named(score["title"], score) for each, score in self.scores.items()}
        name, start = names[kind]
        if [other for other, _ in names.values()].count(name) > 1:
            return f"{name} ({kind})", f"{kind}: {start}"
        return name, _capital(start)

    def short(self, change: Remark) -> str:
        """A change in a few words, for the headline."""
        stage, before, points = self.named(change.stage)[0], self.named(change.before)[0], change.points
        return {"better": f"{stage} {points:+.1f} over {before}", "worse": f"{stage} {-points:.1f} below {before}",
                "same": f"{stage} no change from {before} ({points:+.1f})"}[_verdict(points)]

    def as_json(self, remark: Remark) -> dict[str, Any]:
        points = remark.points
        return {"stage": remark.stage, "about": remark.about, "text": remark.text, "before": remark.before,
                "points": None if points is None else round(points, 2),
                "verdict": None if remark.before is None or points is None else _verdict(points),
                "suggestions": self.suggestions(remark.advice)}

    def suggestions(self, advice: Sequence[Advice]) -> list[dict[str, Any]]:
        """The advice whose key exists and has another value."""
        usable = [(key, value, why) for key, value, why in advice
                  if key is None or not self.known or self.setting(key, _MISSING) not in (_MISSING, value)]
        return [{"setting": None if key is None else f"{key}={_word(value)}", "why": why}
                for key, value, why in usable[:MOST_SUGGESTIONS]]

    def of_steps(self) -> list[Remark]:
        return [remark for row in STEPS for remark in row.remarks(row.name, self.outcome)]

    # Changes from stage to stage.

    def changes(self) -> list[Remark]:
        return [self.change(kind, score["made_from"]) for kind, score in self.scores.items() if score["made_from"] in self.scores]

    def change(self, kind: str, before: str) -> Remark:
        points = self.outcome.points(kind, before)
        if points is None:
            old, new = (self.scores[each]["images"] for each in (before, kind))
            return Remark(kind, "change", f"{self.noun(before)} was scored on {old} images and {self.noun(kind)} on {new}: the "
                          "two are not compared. Score both on one list.", before)
        text, advice = self.worse(kind, before, -points) if _verdict(points) == "worse" else ("", [])   # else in the headline
        return Remark(kind, "change", text, before, points, advice)

    def worse(self, kind: str, before: str, points: float) -> tuple[str, list[Advice]]:
        """The text and the advice for a stage that is `points` below the one before."""
        row, title, best = maker(kind), self.noun(before), (self.scores[kind].get("oracle") or {}).get(MEASURE)
        start = f"{self.named(kind)[1]} {points:.1f} points below {title}"
        if _known(best) and 100 * (best - self.scores[before][MEASURE]) > MARGIN:
            return f"{start}, but would be above it at another threshold: the maps are better, the threshold does not fit.", []
        reason, cause = self.errors(kind, before)
        advice = row.advice(Change(row.name, row.reads, kind, before, cause, self.outcome))
        if kind == self.setting("seed_maps"):
            advice = [*advice, ("seed_maps", before, f"make {self.made_from_seeds() or 'the results'} from {title}")]
        return f"{start}{reason}.{self.fallen(kind, before)}", advice

    def errors(self, kind: str, before: str) -> tuple[str, str | None]:
        """The cause of a fall according to false positives and negatives: text, and "spread", "shrink" or None."""
        values = [self.scores[each].get(key) for each in (before, kind) for key in ("fp", "fn")]
        if not all(map(_known, values)):
            return "", None
        old_fp, old_fn, fp, fn = (100 * value for value in values)
        moved = f" (FP {old_fp:.1f} -> {fp:.1f}, FN {old_fn:.1f} -> {fn:.1f})"
        if (fp - old_fp) - (fn - old_fn) > 2 * MARGIN:
            return f"{moved}, with more background covered", "spread"
        if (fn - old_fn) - (fp - old_fp) > 2 * MARGIN:
            return f"{moved}, with more of the objects missed", "shrink"
        return moved, None

    def fallen(self, kind: str, before: str) -> str:
        """The two classes with the largest loss, without background, as a sentence."""
        pairs = zip(self.classes[1:], *((self.scores[each].get("iou") or ())[1:] for each in (before, kind)))
        moved = sorted((100 * (new - old), name) for name, old, new in pairs if _known(old) and _known(new))[:2]
        worst = [f"{name} ({points:+.1f})" for points, name in moved if points < -MARGIN]
        return f" The IoU fell most for {' and '.join(worst)}." if worst else ""

    # Seed maps.

    def made_from_seeds(self) -> str:
        """The scored results that are made from the seed maps."""
        return " and ".join(self.noun(kind) for kind in self.found if SEEDS in maker(kind).reads.values())

    def seeds(self) -> list[Remark]:
        """Remarks about maps that are better than the seed maps and could take their place.

        If the seed maps are worse than the maps that they were made from, their change says so. Only maps of a step before all
        steps of the experiment that read the seed maps can be the seed maps.
        """
        seeds, made, remarks = self.setting("seed_maps"), self.made_from_seeds(), []
        names = self.setting("steps", [row.name for row in STEPS])
        rows = [row for row in STEPS if row.name in names]
        for row in takewhile(lambda row: SEEDS not in row.reads.values(), rows) if made else ():
            points = self.outcome.points(row.name, seeds)
            if points is not None and _verdict(points) == "better" and row.name != self.scores[seeds]["made_from"]:
                start, title = self.named(row.name)[1], self.noun(seeds)
                text = f"{start} {points:.1f} points above {title}, but {made} are made from {title}."
                advice = [("seed_maps", row.name, f"make them from {self.noun(row.name)}")]
                remarks.append(Remark(row.name, "seeds", text, seeds, points, advice))
        return remarks

    # Thresholds.

    def thresholds(self) -> list[Remark]:
        """Remarks about thresholds that are much worse than the best one on the scored images."""
        remarks = []
        for kind, score in self.scores.items():
            oracle, threshold, row = score.get("oracle") or {}, score.get("threshold"), maker(kind)
            if kind != row.name or not _known(oracle.get(MEASURE)) or threshold is None:
                continue
            points = 100 * (score[MEASURE] - oracle[MEASURE])
            if points >= -ORACLE_GAP:
                continue
            why, advice = self.threshold_cause(score)
            has = "have" if plural(score["title"]) else "has"
            text = (f"{_capital(self.noun(kind))} {has} {100 * score[MEASURE]:.1f} at the threshold "
                    f"{threshold:.2f}, but {100 * oracle[MEASURE]:.1f} at {oracle['threshold']:.2f}, the best one on the scored "
                    f"images: {why}.{self.users(kind)}")
            remarks.append(Remark(kind, "threshold", text, points=points, advice=advice))
        return remarks

    def threshold_cause(self, score: Mapping[str, Any]) -> tuple[str, list[Advice]]:
        source = score.get("threshold_source") or ""
        if of_val := re.search(r"(\d+) val images", source):
            n = int(of_val[1])
            if n >= FEW_VAL:
                return (f"the {n} val images it was chosen on differ from the scored ones",
                        [(None, None, "val images of the same kind as the scored ones")])
            more = ("data.n_val", 4 * n, "more val images")
            return (f"{n} val images may be too few to choose a threshold",
                    [more if self.setting("data.n_val") else (None, None, "more val images with masks")])
        if "no val masks" in source:
            what = f"threshold of the {RULE}" if source.startswith(RULE) else "fallback threshold of the recipe"
            return (f"the {what} does not fit this data",
                    [(None, None, "masks of some val images: the threshold is then chosen on them")])
        return "the configured threshold does not fit this data", [(score["threshold_key"], None, "chosen on val masks")]

    def users(self, kind: str) -> str:
        """The finished steps whose seed maps are `kind` and that derive their thresholds from its threshold, as a sentence."""
        seeds = {row.name: self.setting("seed_maps") if row.reads.get("seeds") == SEEDS else row.reads.get("seeds")
                 for row in STEPS}
        users = [row.name for row in STEPS if row.name in self.results for role, keys in row.INSTEAD.items()
                 if seeds[row.name] == kind and row.reads.get(role) == self.scores[kind]["step"]
                 and all(self.setting(f"{row.name}.{key}", _MISSING) is None for key in keys)]
        return f" The thresholds of {' and '.join(users)} follow from this threshold." if users else ""


def _verdict(points: float) -> str:
    return "better" if points > MARGIN else "worse" if points < -MARGIN else "same"


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _word(value: Any) -> str:
    """A value as on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:g}" \
        if isinstance(value, float) else str(value)
