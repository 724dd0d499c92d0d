"""Values of CAM and LPCAM on strongly and weakly discriminative features: `python -m benchmarks.responses RUN [KEY=VALUE ...]`.

The numeric analysis behind LPCAM's claim (Chen & Sun 2023): a class activation map follows the classifier, so it is high where a
single feature identifies the class and low on the rest of the object; LPCAM, which compares with all local prototypes of the
class, should be high on both. The features of the objects of the train list (grid cells in the class's mask, at scale 1) are
grouped by the probability of the class that the classifier gives for that feature alone; printed are, for each group and for the
cells outside the objects, the means of both maps, each map divided by its maximum. RUN is a finished run with the configuration
KEY=VALUE (as on the command line).
"""

import sys

import numpy as np
import torch
from torch.nn.functional import interpolate

from pipeline import Pipeline
from steps.runtime.artifacts import Maps
from steps.runtime.context import Source, StepContext
from steps.runtime.datasets import open_dataset
from steps.runtime.networks import load_classifier, network_input
from wsss.cams.lpcam import class_probability

GROUPS = (("strong, above 0.9", 0.9, 1.01), ("between", 0.5, 0.9), ("weak, below 0.5", -0.01, 0.5))
KINDS = (("CAM", "make_cam"), ("LPCAM", "make_lpcam"))


def responses(run: str, *overrides: str) -> dict[str, tuple[int, list[float]]]:
    """The number of cells and the mean of each of `KINDS`, by group."""
    pipeline = Pipeline.compose(f"name={run}", *overrides)
    folder, dataset = pipeline.folder, open_dataset(pipeline.config.data)
    read = {"classifier": (Source("train_cam", folder=folder.result("train_cam")),)}
    context = StepContext("responses", None, dataset, {}, folder.path, read)
    classifier = load_classifier(context)
    weight, maps = classifier.classifier.weight.flatten(1), [Maps(folder.result(step)) for _, step in KINDS]
    values: dict[str, list[np.ndarray]] = {name: [] for name in (*(group[0] for group in GROUPS), "outside the objects")}
    for image_id in dataset.lists["train"]:
        with torch.inference_mode():
            features = classifier.features(network_input(context, classifier, image_id))[0]   # (D, h, w)
        grid, truth = features.shape[1:], torch.from_numpy(dataset.mask(image_id).astype(np.int64))
        cells = interpolate(truth[None, None].float(), size=grid, mode="nearest")[0, 0]   # (h, w)
        probability = class_probability(features.flatten(1).T, weight)                      # (h w, C)
        both = [interpolate(each.at(image_id, "full")[None], size=grid, mode="area")[0] for each in maps]   # (K, h, w)
        for row, index in enumerate(dataset.labels[image_id]):
            answer = torch.stack([kind[row].flatten() for kind in both], dim=1)             # (h w, 2)
            inside, p = (cells == index + 1).flatten(), probability[:, index]
            for name, low, high in GROUPS:
                values[name].append(answer[inside & (p >= low) & (p < high)].numpy())
            values["outside the objects"].append(answer[(cells == 0).flatten()].numpy())
    joined = {name: np.concatenate(parts) for name, parts in values.items()}
    nothing = [float("nan")] * len(KINDS)
    return {name: (len(array), array.mean(axis=0).tolist() if len(array) else nothing) for name, array in joined.items()}


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    if not words or "=" in words[0]:
        sys.exit(__doc__)
    print(f"{'features, by the probability of their class':<45} {'cells':>8}" + "".join(f"{kind:>8}" for kind, _ in KINDS))
    for name, (cells, means) in responses(*words).items():
        print(f"{name:<45} {cells:>8,}" + "".join(f"{value:>8.2f}" for value in means))


if __name__ == "__main__":
    main()
