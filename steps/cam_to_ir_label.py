"""Make the labels for IRN from the seed maps: confident foreground and background by a dense CRF, 255 (ignore) elsewhere.

Official file: `step/cam_to_ir_label.py` (IRN, LPCAM). Reads the seed maps and, if the confident pair is not
configured, the threshold that eval_cam chose on val. Writes `ID.png` (0 background, 1..C class, 255 ignore) in the size
of the network input. A mask corrected by hand takes the place of the label of its image.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from steps.parts.confident_labels import make_labels
from steps.parts.official import OfficialLabels
from steps.parts.pieces import Adjustable, Column
from steps.parts.shown import adjustable_maps, label_column
from steps.parts.thresholds import FALLBACK, SCORES, by_rule, confident_pair, read_chosen
from steps.parts.tuning import Tuned, Tuning, confident, confident_lines
from steps.runtime.artifacts import Labels, Maps
from steps.runtime.context import StepContext, require, require_package
from steps.step import IMAGES, PER_MAP, Needs, Setup, StepSettings, facts

VERSION = 1
KIND = IMAGES
INSTEAD = {"thresholds": ("conf_fg", "conf_bg")}
OFFICIAL = OfficialLabels("ir_label")
reader = Labels


class CRFBackend(Enum):
    torch = "torch"
    pydensecrf = "pydensecrf"


@dataclass
class Pair:
    """A confident pair of thresholds, or both null."""

    conf_fg: float | None = None
    conf_bg: float | None = None


@dataclass
class Settings(StepSettings):
    """`cam_to_ir_label.`: the values and their sources are in `conf/recipe/`."""

    split: str | None                # null: what train_irn reads
    conf_fg: float | None            # both null: from the threshold chosen on val masks, else `fallback`
    conf_bg: float | None
    fallback: dict[str, Pair | None] = field(metadata=PER_MAP)   # without val masks; null: from that of the separation rule
    crf_iterations: int
    gt_prob: float                   # the CRF's confidence in the seed labels
    crf_backend: CRFBackend

    def __post_init__(self) -> None:
        pair, key = (self.conf_fg, self.conf_bg), f"{self.step}.conf_fg, conf_bg"
        require((self.conf_fg is None) == (self.conf_bg is None), key, pair, "both null or both set")
        require(_is_pair(*pair), key, pair, "0 <= conf_bg <= conf_fg <= 1")
        for kind, each in self.fallback.items():
            require(each is None or _is_pair(each.conf_fg, each.conf_bg), f"{self.step}.fallback.{kind}", each,
                    "both null, or 0 <= conf_bg <= conf_fg <= 1")
        self.require(self.crf_iterations >= 1, "crf_iterations", "at least 1")
        self.require(0 < self.gt_prob < 1, "gt_prob", "a probability above 0 and below 1")


def _is_pair(conf_fg: float | None, conf_bg: float | None) -> bool:
    """Whether both are null, or a confident pair."""
    return conf_fg is conf_bg is None or conf_fg is not None and conf_bg is not None and 0 <= conf_bg <= conf_fg <= 1


def identity(setup: Setup) -> dict[str, Any]:
    """Of the fallbacks, only the one in use counts."""
    own = facts(setup)[setup.name]
    return {setup.name: {**own, "fallback": own["fallback"][setup.seeds] if falls_back(setup) else None}}


def falls_back(setup: Setup) -> bool:
    """Whether the confident pair is the fallback."""
    return setup.settings.conf_fg is None and not setup.sources.get("thresholds")


def unused(setup: Setup) -> dict[str, str]:
    return {} if setup.settings.conf_fg is None else {"thresholds": "conf_fg"}


def corrected(settings: Settings) -> bool:
    return True


def check(setup: Setup) -> None:
    setup.require_mask_values()
    settings = setup.settings
    require_package("pydensecrf", settings.crf_backend is CRFBackend.pydensecrf, f"{setup.name}.crf_backend")


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate, labels_on_disk

    estimate = Estimate(setup)
    images = estimate.images("ids")
    return estimate.finish(labels_on_disk(images, border=5),   # measured: 3.0 to 4.7
                           passing=estimate.concurrent(images) * estimate.crf(images), files=1)


def run(context: StepContext) -> dict[str, Any]:
    from wsss.refinement.ir_label import ir_label

    settings, maps = context.settings, Maps(context.input("seeds"))
    (conf_fg, conf_bg), source = confident_thresholds(context)
    make_labels(context, maps, partial(ir_label, conf_fg=conf_fg, conf_bg=conf_bg, iterations=settings.crf_iterations,
                                       gt_prob=settings.gt_prob, backend=settings.crf_backend.value))
    return {"conf_fg": conf_fg, "conf_bg": conf_bg, "threshold_source": source}


def confident_thresholds(context: StepContext) -> tuple[tuple[float, float], str]:
    """Return (conf_fg, conf_bg) and their source."""
    settings = context.settings
    if settings.conf_fg is not None:
        return (settings.conf_fg, settings.conf_bg), f"{context.name}.conf_fg, conf_bg in the configuration"
    if context.reads("thresholds"):
        choice = read_chosen(context.input("thresholds") / SCORES, context.seeds)
        threshold, source = choice["threshold"], choice["source"]
    elif (pair := settings.fallback[context.seeds]) and pair.conf_fg is not None and pair.conf_bg is not None:
        return (pair.conf_fg, pair.conf_bg), FALLBACK
    else:
        chosen = by_rule(context, Maps(context.input("seeds")), f"{context.name}.conf_fg and {context.name}.conf_bg")
        threshold, source = chosen.threshold, chosen.source
    return confident_pair(threshold), f"+0.15 / -0.10 of the threshold with the {source}"


def tune(context: StepContext, tuning: Tuning) -> Tuned | None:
    """The confident pair of the seed maps by the rule, how often it is right, and the pair that is right often enough; None
    without seed maps."""
    if not context.reads("seeds"):
        return None
    kind, maps = context.seeds, Maps(context.input("seeds"))
    tuning.require({kind: maps})
    pair = confident(tuning.counts(context, maps), tuning.settings.confidence)
    rule, best = pair["rule"], pair["best"]
    line = (f"  {kind}: confident pair by the rule {rule['conf_fg']:g}, {rule['conf_bg']:g}: right for "
            f"{_percent(rule['fg_right'])}, {_percent(rule['bg_right'])} of their pixels before the CRF; right for "
            f"{_percent(pair['confidence'])}: {_value(best['conf_fg'])}, {_value(best['conf_bg'])}")
    words = [f"{context.name}.{half}={rule[half]:g}" for half in ("conf_fg", "conf_bg")]
    return Tuned({kind: pair}, [line], words, curves=[confident_lines(kind, pair)])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _value(threshold: float | None) -> str:
    return "never" if threshold is None else f"{threshold:g}"


def shown(context: StepContext) -> Iterator[Column | Adjustable]:
    yield label_column(context, "confident label")
    if context.reads("seeds") and context.folder.exists():
        yield adjustable_maps("confident labels", Maps(context.input("seeds")),
                              {f"{context.name}.conf_fg": None, f"{context.name}.conf_bg": None}, "the dense CRF")
