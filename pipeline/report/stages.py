"""Describe the effect of each stage of a run on the mIoU, with suggestions if a stage lowered it.

The stages are CAM, LPCAM and the pseudo masks; each is compared with the stage it was made from. Pure functions from a summary
(`pipeline.runfolder.summary`) to sentences: they read no files and compute no scores.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.report.kinds import TITLES, measured

MARGIN = 0.5        # points of mIoU; a smaller difference counts as no change
ORACLE_GAP = 1.0    # points; a larger gain of the best threshold is reported
FEW_VAL = 100       # with fewer val images, their number is named as the cause of a poor threshold
WEAK_MAP = 0.7      # with a lower mean average precision on val, the classifier is named as a cause
MOST_SUGGESTIONS = 3

REFINERS = {"walk": "walk", "crf": "CRF", "walk_crf": "walk and CRF", "none": "no refinement"}   # in the headline
SUBJECTS = {"walk": "the random walk is", "crf": "the CRF is", "walk_crf": "the random walk and CRF are",
            "none": "the seeds without refinement are"}
THRESHOLD_KEYS = {"cam": "eval_cam.threshold.cam", "lpcam": "eval_cam.threshold.lpcam",
                  "pseudo_masks": "make_sem_seg_labels.bg_threshold"}
# The keys that decide which suggestions apply.
SETTING_KEYS = ("seed_maps", "data.n_val", "model.backbone", "model.starts_from_weights", "train_cam.epochs", "train_irn.epochs",
                "make_lpcam.prototypes", "make_lpcam.cam_threshold", "make_lpcam.fg_threshold", "make_lpcam.n_clusters",
                "make_lpcam.background_high", "cam_to_ir_label.conf_fg", "make_sem_seg_labels.refiner",
                "make_sem_seg_labels.exp_times", "make_sem_seg_labels.beta", *THRESHOLD_KEYS.values())


@dataclass(frozen=True)
class Suggestion:
    """`setting`: KEY=VALUE for the command line, or None if the remedy is no setting; `why`: its effect."""

    setting: str | None
    why: str


@dataclass(frozen=True)
class Remark:
    """A remark about one stage.

    `about`: "change" (against `before`), "threshold" (against its best one), "background" (LPCAM against LPCAM-F), or
    "classifier". `points`: the difference in points of mIoU, or None; `verdict`: better, same, worse, or None.
    """

    stage: str                       # cam, lpcam, pseudo_masks
    about: str
    text: str
    before: str | None = None
    points: float | None = None
    verdict: str | None = None
    suggestions: tuple[Suggestion, ...] = ()


def describe(summary: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The `headline` (one line, empty if no two stages can be compared) and the `remarks` of a summary, ready for JSON.

    `settings`: the values in use, by key (`settings_in_use`). Other keys and values already
    in use are not suggested. None: the values are unknown, so all suggestions are made.
    """
    run = _Run(summary, settings)
    changes = run.changes()
    headline = ", ".join(run.short(remark) for remark in changes if remark.verdict)
    remarks = [*run.classifier(), *changes, *run.background(), *run.thresholds()]
    return {"headline": headline, "remarks": [asdict(remark) | {"suggestions": [asdict(each) for each in remark.suggestions]}
                                              for remark in remarks if remark.text]}   # lists, as JSON has no tuples


def settings_in_use(config: Any) -> dict[str, Any]:
    """The values of `SETTING_KEYS` in a typed configuration, enumerations by their value; missing keys are left out."""
    found = {}
    for key in SETTING_KEYS:
        value = config
        for name in key.split("."):
            value = getattr(value, name, _MISSING)
        if value is not _MISSING:
            found[key] = getattr(value, "value", value)
    return found


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

    def __init__(self, summary: Mapping[str, Any], settings: Mapping[str, Any] | None):
        found, masks = measured(summary), summary.get("eval_sem_seg")
        self.scores = {kind: score for kind, score in found.items() if _known(score.get("miou"))}
        self.settings, self.steps, self.classes = settings, summary.get("steps") or {}, summary.get("classes") or ()
        self.seed = (settings or {}).get("seed_maps") or ("lpcam" if "lpcam" in found else "cam")
        self.refiner = (masks or {}).get("refiner") or "walk"
        self.imported = bool(masks) and masks.get("threshold") is None

    def title(self, kind: str) -> str:
        if kind != "pseudo_masks":
            return TITLES[kind]
        return "imported pseudo masks" if self.imported else REFINERS.get(self.refiner, "refinement")

    def short(self, remark: Remark) -> str:
        """A change in a few words, for the headline."""
        stage, before = self.title(remark.stage), TITLES[remark.before]
        return {"better": f"{stage} {remark.points:+.1f} over {before}", "worse": f"{stage} {-remark.points:.1f} below {before}",
                "same": f"{stage} no change from {before} ({remark.points:+.1f})"}[remark.verdict]

    # Changes from stage to stage.

    def changes(self) -> list[Remark]:
        pairs = [("cam", "lpcam"), (self.seed, "pseudo_masks")]
        return [self._change(*pair) for pair in pairs if self.scores.keys() >= set(pair)]

    def _change(self, before: str, stage: str) -> Remark:
        old, new = self.scores[before], self.scores[stage]
        name = "LPCAM" if stage == "lpcam" else "the pseudo masks"
        if old.get("images") != new.get("images"):
            return Remark(stage, "change", f"{TITLES[before]} was scored on {old.get('images')} images and {name} on "
                          f"{new.get('images')}: the two are not compared. Score both on one list.", before)
        points = 100 * (new["miou"] - old["miou"])
        verdict = _verdict(points)
        if verdict == "worse":
            text, suggestions = self._worse(before, stage, -points)
        elif stage == "lpcam" and self.seed == "cam" and verdict == "better" and "pseudo_masks" in self.scores:
            text = f"LPCAM is {points:.1f} points above CAM, but the pseudo masks are made from CAM."
            suggestions = self._possible([("seed_maps", "lpcam", "make them from LPCAM")])
        else:
            text, suggestions = "", ()   # in the headline
        return Remark(stage, "change", text, before, round(points, 2), verdict, suggestions)

    def _worse(self, before: str, stage: str, points: float) -> tuple[str, tuple[Suggestion, ...]]:
        reason, cause = self._errors(before, stage)
        best = (self.scores[stage].get("oracle") or {}).get("miou")
        subject = ("LPCAM is" if stage == "lpcam" else "the imported pseudo masks are" if self.imported
                   else SUBJECTS.get(self.refiner, "the refinement is"))
        start = f"{subject[0].upper()}{subject[1:]} {points:.1f} points below {TITLES[before]}"
        if _known(best) and 100 * (best - self.scores[before]["miou"]) > MARGIN:
            return f"{start}, but would be above it at another threshold: the maps are better, the threshold does not fit.", ()
        wanted = self._for_lpcam(cause) if stage == "lpcam" else self._for_masks(before, cause)
        return f"{start}{reason}.{self._classes(before, stage)}", self._possible(wanted)

    def _classes(self, before: str, stage: str) -> str:
        """The two classes with the largest loss, without background, as a sentence."""
        pairs = zip(self.classes[1:], *((self.scores[kind].get("iou") or ())[1:] for kind in (before, stage)))
        moved = sorted((100 * (new - old), name) for name, old, new in pairs if _known(old) and _known(new))[:2]
        worst = [f"{name} ({points:+.1f})" for points, name in moved if points < -MARGIN]
        return f" The IoU fell most for {' and '.join(worst)}." if worst else ""

    def _errors(self, before: str, stage: str) -> tuple[str, str | None]:
        """The cause of a fall according to false positives and negatives: text, and "spread", "shrink" or None."""
        values = [self.scores[kind].get(key) for kind in (before, stage) for key in ("fp", "fn")]
        if not all(map(_known, values)):
            return "", None
        old_fp, old_fn, fp, fn = (100 * value for value in values)
        moved = f" (FP {old_fp:.1f} -> {fp:.1f}, FN {old_fn:.1f} -> {fn:.1f})"
        if (fp - old_fp) - (fn - old_fn) > 2 * MARGIN:
            return f"{moved}, with more background covered", "spread"
        if (fn - old_fn) - (fp - old_fp) > 2 * MARGIN:
            return f"{moved}, with more of the objects missed", "shrink"
        return moved, None

    def _for_lpcam(self, cause: str | None) -> list[tuple[str, Any, str]]:
        value = self._value
        wanted: list[tuple[str, Any, str]] = []
        if value("make_lpcam.prototypes") is None:   # imported prototypes are not clustered
            if cause != "shrink" and value("make_lpcam.cam_threshold", 0.1) < 0.4:
                wanted.append(("make_lpcam.cam_threshold", 0.4, "fewer cells count as foreground"))
            if cause != "spread" and value("make_lpcam.fg_threshold", 0.9) > 0.7:
                wanted.append(("make_lpcam.fg_threshold", 0.7, "more foreground prototypes are kept"))
            if cause == "shrink" and value("make_lpcam.n_clusters", 12) < 20:
                wanted.append(("make_lpcam.n_clusters", 20, "more prototypes, of smaller parts"))
        if self.seed == "lpcam":
            wanted.append(("seed_maps", "cam", "make the pseudo masks from CAM"))
        return wanted

    def _for_masks(self, before: str, cause: str | None) -> list[tuple[str, Any, str]]:
        if self.imported:
            return []
        exp_times, beta = self._value("make_sem_seg_labels.exp_times", 8), self._value("make_sem_seg_labels.beta", 10.0)
        crf = ("make_sem_seg_labels.refiner", "crf", "a dense CRF on the seeds, no walk")
        walk = ("make_sem_seg_labels.refiner", "walk", "the random walk alone")
        none = ("make_sem_seg_labels.refiner", "none", f"{TITLES[before]} at its threshold, unrefined")
        shorter = [("make_sem_seg_labels.exp_times", max(exp_times - 3, 1), "a shorter walk")] if exp_times > 1 else []
        if self.refiner == "crf":
            return [walk, none]
        if self.refiner == "walk_crf":
            return [walk, crf, *shorter]
        if self.refiner == "none":
            threshold = self.scores[before].get("threshold")
            return [(THRESHOLD_KEYS["pseudo_masks"], threshold, f"as {TITLES[before]} in eval_cam")] * bool(threshold)
        if cause == "shrink":
            return [crf, ("make_sem_seg_labels.beta", beta / 2, "a walk that crosses weak edges more easily"),
                    ("train_irn.epochs", 2 * self._epochs("train_irn", 6), "edges that were trained longer")]
        return [crf, *shorter, ("make_sem_seg_labels.beta", 2 * beta, "a walk that keeps to the inside of edges")]

    def _result(self, step: str) -> Mapping[str, Any]:
        return (self.steps.get(step) or {}).get("result") or {}

    def _epochs(self, step: str, default: int) -> int:
        """The number of epochs of a training, also if the setting is null."""
        return self._result(step).get("epochs") or self._value(f"{step}.epochs") or default

    # Remarks about single scores.

    def classifier(self) -> list[Remark]:
        """A remark about a weak classifier, if a stage is worse than the one before."""
        val_map = self._result("train_cam").get("val_map")
        if not _known(val_map) or val_map >= WEAK_MAP or all(change.verdict != "worse" for change in self.changes()):
            return []
        wanted = [("train_cam.epochs", 2 * self._epochs("train_cam", 4), "a longer training")]
        if not self._value("model.starts_from_weights", True):
            wanted.insert(0, ("model.backbone", "efficientnet_lite0", "start from ImageNet weights, which are installed"))
        text = f"The classifier has a mean average precision of {100 * val_map:.1f} on val: all maps come from it."
        return [Remark("cam", "classifier", text, suggestions=self._possible(wanted))]

    def background(self) -> list[Remark]:
        """A remark if LPCAM is below LPCAM-F: the background prototypes remove parts of the objects."""
        pair = [self.scores.get(kind) for kind in ("lpcam_fg", "lpcam")]
        if None in pair or _verdict(points := 100 * (pair[1]["miou"] - pair[0]["miou"])) != "worse":
            return []
        high = self._value("make_lpcam.background_high", 0.9)
        wanted = [("make_lpcam.background_high", 0.5, "fewer background prototypes")] if high > 0.5 else []
        return [Remark("lpcam", "background", f"LPCAM is {-points:.1f} points below LPCAM-F, the same maps without background "
                       "prototypes, which remove parts of the objects.", "lpcam_fg", round(points, 2), "worse",
                       self._possible(wanted))]

    def thresholds(self) -> list[Remark]:
        """Remarks about thresholds that are much worse than the best one on the scored images."""
        found = []
        for kind in ("cam", "lpcam", "pseudo_masks"):
            score = self.scores.get(kind) or {}
            oracle, threshold = score.get("oracle") or {}, score.get("threshold")
            if not _known(oracle.get("miou")) or threshold is None or 100 * (oracle["miou"] - score["miou"]) <= ORACLE_GAP:
                continue
            points = 100 * (score["miou"] - oracle["miou"])
            name = "The pseudo masks have" if kind == "pseudo_masks" else f"{TITLES[kind]} has"
            why, suggestions = self._threshold_cause(kind, score.get("threshold_source") or "")
            follows = (" The confident labels follow from this threshold." if kind == self.seed and self.settings is not None
                       and self._value("cam_to_ir_label.conf_fg", 0) is None else "")
            text = (f"{name} {100 * score['miou']:.1f} at the threshold {threshold:.2f}, but {100 * oracle['miou']:.1f} at "
                    f"{oracle['threshold']:.2f}, the best one on the scored images: {why}.{follows}")
            found.append(Remark(kind, "threshold", text, points=round(points, 2), suggestions=suggestions))
        return found

    def _threshold_cause(self, kind: str, source: str) -> tuple[str, tuple[Suggestion, ...]]:
        if of_val := re.search(r"(\d+) val images", source):
            n = int(of_val[1])
            if n >= FEW_VAL:
                return (f"the {n} val images it was chosen on differ from the scored ones",
                        (Suggestion(None, "val images of the same kind as the scored ones"),))
            more = self._possible([("data.n_val", 4 * n, "more val images")]) if self._value("data.n_val") else ()
            return (f"{n} val images may be too few to choose a threshold",
                    more or (Suggestion(None, "more val images with masks"),))
        if source.startswith("published"):
            return ("the published threshold does not fit this data",
                    (Suggestion(None, "masks of some val images: the threshold is then chosen on them"),))
        return ("the configured threshold does not fit this data",
                self._possible([(THRESHOLD_KEYS[kind], None, "chosen on val masks")]))

    # Settings.

    def _value(self, key: str, otherwise: Any = None) -> Any:
        value = (self.settings or {}).get(key, _MISSING)
        return otherwise if value is _MISSING else value

    def _possible(self, wanted: list[tuple[str, Any, str]]) -> tuple[Suggestion, ...]:
        """The suggestions whose key exists and has another value."""
        usable = [(key, value, why) for key, value, why in wanted
                  if self.settings is None or key in self.settings and self.settings[key] != value]
        return tuple(Suggestion(f"{key}={_word(value)}", why) for key, value, why in usable[:MOST_SUGGESTIONS])


def _verdict(points: float) -> str:
    return "better" if points > MARGIN else "worse" if points < -MARGIN else "same"


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _word(value: Any) -> str:
    """A value as on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:g}" \
        if isinstance(value, float) else str(value)
