"""The rows of `benchmarks.extractors` as Markdown, beside the published times."""

from collections.abc import Mapping
from dataclasses import dataclass

# F-CAM's table (supplement), in ms, of VGG16, Inception and ResNet-50
PUBLISHED = {"cam": (0.2, 0.2, 0.3), "gradcam": (7.7, 21.1, 27.8), "gradcam_pp": (23.5, 23.7, 28.0),
             "smooth_gradcam_pp": (62.0, 150.7, 136.2), "xgradcam": (2.9, 19.2, 14.2), "layercam": (3.2, 18.2, 17.9),
             "scorecam": (1900, 3400, 9300), "sscam": (105e3, 136e3, 349e3), "iscam": (30.1e3, 39e3, 99e3)}


@dataclass
class Row:
    """Seconds, medians; `ratio`: of ours / torchcam's, `bare`: of ours / bare forward passes, medians of pairs."""

    network: str
    method: str
    extrapolated: bool
    ours_s: float
    theirs_s: float | None
    ratio: float | None
    ours_after_s: float | None
    theirs_after_s: float | None
    ratio_after: float | None
    bare: float | None
    published_s: float | None


def table(rows: list[Row], titles: Mapping[str, str]) -> str:
    """Markdown. `titles`: what is said of each network."""
    lines = []
    for name, title in titles.items():
        lines += ["", title, "",
                  "| map | ours | torchcam | ratio | ours, without the forward pass | torchcam | ratio | ours / bare forwards "
                  "| F-CAM |",
                  "|---" * 9 + "|"]
        lines += [f"| `{row.method}` | " + " | ".join([
            *(_time(value, row.extrapolated) for value in (row.ours_s, row.theirs_s)), _number(row.ratio),
            *(_time(value, False) for value in (row.ours_after_s, row.theirs_after_s)), _number(row.ratio_after),
            _number(row.bare), _time(row.published_s, False)]) + " |" for row in rows if row.network == name]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _time(seconds: float | None, extrapolated: bool) -> str:
    if seconds is None:
        return ""
    text = f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s" if seconds < 100 else f"{seconds / 60:.3g} min"
    return "~" * extrapolated + text
