"""Make the labels for IRN from the seed maps: confident foreground and background by a dense CRF, 255 (ignore) elsewhere.

Official file: `step/cam_to_ir_label.py` (IRN, LPCAM). Reads the seed maps and, if the confident pair is not
configured, the threshold that eval_cam chose on val. Writes `ID.png` (0 background, 1..C class, 255 ignore) in the size
of the network input.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from steps.eval_cam import SCORES
from steps.parts.thresholds import FALLBACK, confident_pair, read_chosen
from steps.runtime.artifacts import Labels, Maps
from steps.runtime.context import StepContext, require, require_package
from steps.runtime.inference import Made, for_each_image
from wsss.data.images import encode_mask

VERSION = 1
reader = Labels


class CRFBackend(Enum):
    torch = "torch"
    pydensecrf = "pydensecrf"


@dataclass
class Settings:
    """`cam_to_ir_label.`: the values and their sources are in `conf/recipe/`."""

    split: str | None                # null: what train_irn reads
    conf_fg: float | None            # both null: from the threshold chosen on val masks, else the published pair
    conf_bg: float | None
    crf_iterations: int
    gt_prob: float                   # the CRF's confidence in the seed labels
    crf_backend: CRFBackend

    def __post_init__(self) -> None:
        pair = (self.conf_fg, self.conf_bg)
        require((self.conf_fg is None) == (self.conf_bg is None), "cam_to_ir_label.conf_fg, conf_bg", pair,
                "both null or both set")
        require(self.conf_fg is None or self.conf_bg is None or 0 <= self.conf_bg <= self.conf_fg <= 1,
                "cam_to_ir_label.conf_fg, conf_bg", pair, "0 <= conf_bg <= conf_fg <= 1")
        require(self.crf_iterations >= 1, "cam_to_ir_label.crf_iterations", self.crf_iterations, "at least 1")
        require(0 < self.gt_prob < 1, "cam_to_ir_label.gt_prob", self.gt_prob, "a probability above 0 and below 1")


def check(settings: Settings) -> None:
    """Raise BackendError if the back end is not installed."""
    require_package("pydensecrf", settings.crf_backend is CRFBackend.pydensecrf, "cam_to_ir_label.crf_backend")


def run(context: StepContext) -> dict[str, Any]:
    from wsss.refinement.ir_label import ir_label

    settings, maps = context.settings, Maps(context.seed_folder)
    (conf_fg, conf_bg), source = confident_thresholds(context)

    def make(image_id: str) -> Made:
        image = context.dataset.image(image_id)
        label = ir_label(image, maps.map(image_id, "full", context.device), maps.classes(image_id), conf_fg=conf_fg,
                         conf_bg=conf_bg, iterations=settings.crf_iterations, gt_prob=settings.gt_prob,
                         backend=settings.crf_backend.value)
        return {f"{image_id}.png": encode_mask(label.cpu().numpy())}, {"height": image.shape[0], "width": image.shape[1]}

    for_each_image(context, make, cpu_parallel=True)
    return {"conf_fg": conf_fg, "conf_bg": conf_bg, "threshold_source": source}


def confident_thresholds(context: StepContext) -> tuple[tuple[float, float], str]:
    """Return (conf_fg, conf_bg) and their source."""
    settings = context.settings
    if settings.conf_fg is not None:
        return (settings.conf_fg, settings.conf_bg), "cam_to_ir_label.conf_fg, conf_bg in the configuration"
    if "eval_cam" in context.inputs:
        choice = read_chosen(context.inputs["eval_cam"] / SCORES, context.seed_maps)
        return confident_pair(choice["threshold"]), f"+0.15 / -0.10 of the threshold with the {choice['source']}"
    published = FALLBACK[context.seed_maps]
    return (published.conf_fg, published.conf_bg), "published constants (no val masks to choose by)"
