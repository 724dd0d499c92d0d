"""Rules that choose the background threshold of maps without masks, against the choice on val masks.

    python -m benchmarks.threshold_rules NAME=RUN,RUN,... [NAME=RUN,...]

NAME is a data set, RUN the folder of a finished run on it with maps and eval_cam, such as those with different seeds. Printed is
for each rule what it loses: the mIoU of the scored images at the threshold that eval_cam chose on val, minus the mIoU at that of
the rule, in points, for each data set and kind of map the mean over the runs; and the mean and the greatest of all.

The rules see the same images as the steps do (`steps.parts.thresholds.by_rule`). Of the histogram of the greatest map value of
each pixel, the images weighted equally: Otsu (1979), ISODATA (Ridler 1978), Li (1993), Yen (1995), Kapur's entropy (1985), the
triangle (Zack 1977), the valley between two modes (Prewitt 1966) and the mean of the values; and Otsu's threshold of each image,
their mean. Of the images: the variance of the colours that the two sides explain, and the mean colour difference across the
boundary. And of both, the rule that is used: the product of the explained variances of maps and colours.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from pipeline import Pipeline
from steps.parts.thresholds import RULE_IMAGES, SCORES
from steps.runtime.artifacts import FG_ONLY, Maps, read_json
from wsss.cams.separation import Separation
from wsss.data.ids import smallest_hashes
from wsss.metrics.semantic import THRESHOLDS

KINDS = {"make_cam": ("make_cam", ""), "make_lpcam_fg_only": ("make_lpcam", FG_ONLY), "make_lpcam": ("make_lpcam", "")}
FIXED = {"make_cam": 0.45, "make_lpcam_fg_only": 0.6, "make_lpcam": 0.6}
BINS = 100
VALUES = (np.arange(BINS) + 0.5) / BINS


def otsu(h: np.ndarray) -> float:
    below, sums = h.cumsum()[:-1], (h * VALUES).cumsum()
    gap = sums[:-1] / np.maximum(below, 1e-12) - (sums[-1] - sums[:-1]) / np.maximum(1 - below, 1e-12)
    return float((below * (1 - below) * gap**2).argmax() + 1) / BINS


def _sides(h: np.ndarray, threshold: float) -> tuple[float, float]:
    """The means of the values up to a threshold, and above it."""
    low = threshold >= VALUES
    return tuple((h * VALUES)[side].sum() / max(h[side].sum(), 1e-12) for side in (low, ~low))


def _iterated(h: np.ndarray, start: float, step: Callable[[float, float], float]) -> float:
    threshold = start
    for _ in range(200):
        threshold, before = step(*_sides(h, threshold)), threshold
        if abs(threshold - before) < 1e-4:
            break
    return threshold


def isodata(h: np.ndarray) -> float:
    return _iterated(h, 0.5, lambda low, high: (low + high) / 2)


def li(h: np.ndarray) -> float:
    return _iterated(h, (h * VALUES).sum(), lambda low, high: (high - low) / np.log(max(high, 1e-9) / max(low, 1e-9)))


def yen(h: np.ndarray) -> float:
    below, squares = h.cumsum()[:-1], (h**2).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        criterion = 2 * np.log(below * (1 - below)) - np.log(squares[:-1] * (squares[-1] - squares[:-1]))
    return float(np.where(np.isfinite(criterion), criterion, -np.inf).argmax() + 1) / BINS


def entropy(h: np.ndarray) -> float:
    below, parts = h.cumsum()[:-1], -(h * np.log(np.maximum(h, 1e-300))).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        criterion = np.log(below * (1 - below)) + parts[:-1] / below + (parts[-1] - parts[:-1]) / (1 - below)
    return float(np.where(np.isfinite(criterion), criterion, -np.inf).argmax() + 1) / BINS


def triangle(h: np.ndarray) -> float:
    peak, ends = int(h.argmax()), np.flatnonzero(h)[[0, -1]]
    end = int(max(ends, key=lambda each: abs(each - peak)))
    places = np.arange(min(peak, end), max(peak, end) + 1)
    line = np.interp(places, sorted((peak, end)), h[sorted((peak, end))])
    return float(places[(line - h[places]).argmax()] + 0.5) / BINS


def valley(h: np.ndarray) -> float:
    for sigma in range(1, 40):
        smooth = gaussian_filter1d(h, sigma, mode="nearest")
        padded = np.concatenate([[-1], smooth, [-1]])
        peaks = np.flatnonzero((padded[1:-1] > padded[:-2]) & (padded[1:-1] >= padded[2:]))
        if len(peaks) <= 2:
            break
    return float(peaks[0] + smooth[peaks[0]:peaks[-1] + 1].argmin() + 0.5) / BINS if len(peaks) == 2 else 0.5


def across_boundary(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(2, T): over the boundary at each threshold, the sum of the colour differences, divided by their mean in the image, and the
    number of pairs of neighbours."""
    found, colours = np.zeros((2, len(THRESHOLDS) + 1)), image.astype(float)
    passed = np.searchsorted(np.array(THRESHOLDS, np.float32), values)
    for axis in (0, 1):
        ends = [np.take(passed, range(start, passed.shape[axis] - 1 + start), axis).ravel() for start in (0, 1)]
        low, high = np.minimum(*ends), np.maximum(*ends)
        step = np.abs(np.diff(colours, axis=axis)).sum(axis=2).ravel()
        for row, weight in enumerate((step / max(step.mean(), 1e-6), np.ones_like(step))):
            found[row] += np.bincount(low, weight, found.shape[1]) - np.bincount(high, weight, found.shape[1])
    return found.cumsum(axis=1)[:, :-1]


def choices(maps: Maps, dataset: object, ids: list[str]) -> dict[str, float]:
    """The threshold of each rule."""
    total, histogram, each, edges = Separation(), np.zeros(BINS), [], np.zeros((2, len(THRESHOLDS)))
    for image_id in ids:
        soft, image, one = maps.at(image_id, "full"), dataset.image(image_id), Separation()
        one.update(soft, image)
        total.sums += one.sums
        values = soft.amax(dim=0).clamp(0, 1).numpy()
        shares = np.bincount(np.minimum(values.ravel() * BINS, BINS - 1).astype(int), minlength=BINS) / values.size
        histogram += shares / len(ids)
        each.append(otsu(shares))
        edges += across_boundary(values, image)
    inside = slice(5, 96)   # a boundary of a few pixels has any difference
    contrast = edges[0, inside] / np.maximum(edges[1, inside], 1)
    rules = {rule.__name__: rule(histogram) for rule in (otsu, isodata, li, yen, entropy, triangle, valley)}
    return {**rules, "mean of the values": float((histogram * VALUES).sum()), "otsu of each image": float(np.mean(each)),
            "colours": THRESHOLDS[int(total.sums[1].argmax())], "boundary": THRESHOLDS[5 + int(contrast.argmax())],
            "maps and colours": total.best()}


def losses(folder: Path) -> dict[str, dict[str, float]]:
    """Kind of maps -> rule -> points of mIoU that it loses against the choice on val."""
    run = Pipeline.compose(f"outputs={folder.parent}", f"name={folder.name}", "device=cpu").recorded(folder)
    content, found = read_json(run.folder.result("eval_cam") / SCORES), {}
    for kind, (step, part) in KINDS.items():
        maps, curve = Maps(run.folder.result(step), part), content["scores"][kind]["curve"]
        ids = [image_id for image_id in run.dataset.lists["train"] if image_id in maps.index and maps.classes(image_id)]
        chosen = {**choices(maps, run.dataset, smallest_hashes(ids, RULE_IMAGES)), "0.45, LPCAM 0.6": FIXED[kind]}
        on_val, *others = (np.interp(threshold, curve["threshold"], curve["miou"])
                           for threshold in (content["chosen"][kind]["threshold"], *chosen.values()))
        found[kind] = {rule: 100 * (on_val - other) for rule, other in zip(chosen, others)}
        print(f"{folder}, {kind}: on val {content['chosen'][kind]['threshold']:.2f}, mIoU {100 * on_val:.1f}; "
              + ", ".join(f"{rule} {threshold:.2f}" for rule, threshold in chosen.items()), file=sys.stderr)
    return found


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    if not words or not all("=" in word for word in words):
        sys.exit(__doc__)
    found = {(name, kind): [] for name in (word.partition("=")[0] for word in words) for kind in KINDS}
    for name, _, runs in (word.partition("=") for word in words):
        for run in runs.split(","):
            for kind, lost in losses(Path(run)).items():
                found[name, kind].append(lost)
    rules = list(next(iter(found.values()))[0])
    rows = {rule: [[lost[rule] for lost in each] for each in found.values()] for rule in rules}
    print(f"| rule | {' | '.join(f'{name}, {kind}' for name, kind in found)} | mean | greatest |")
    print("|---" * (len(found) + 3) + "|")
    for rule, lost in sorted(rows.items(), key=lambda row: np.mean([np.mean(each) for each in row[1]])):
        means = [np.mean(each) for each in lost]
        print(f"| {rule} | {' | '.join(f'{value:.1f}' for value in means)} | {np.mean(means):.2f} | {max(map(max, lost)):.1f} |")


if __name__ == "__main__":
    main()
