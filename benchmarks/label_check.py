"""How many flipped labels action=check_labels lists first: `python -m benchmarks.label_check DATA OUT [SEED ...]`.

DATA is a folder of one's own (docs/own_data.md), of which 5 % of the labels are flipped: by turns a class is removed, a wrong one
added, and one swapped for a wrong one. Half of all images train each of two classifiers with the settings of the recipe.
"""

import json
import sys
from pathlib import Path

from pipeline import Pipeline
from wsss.data import open_folder
from wsss.seeding import generator

SHARE = 0.05   # of the images
KINDS = ("removed", "added", "swapped")
FIRST = 20


def flipped(labels: dict[str, tuple[int, ...]], n_classes: int, seed: int) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The labels with a share of them wrong, and what was done to each of those images."""
    draws, ids = generator(seed, "label_check"), [image_id for image_id in labels if labels[image_id]]
    wrong, kinds = dict(labels), {}
    for number, place in enumerate(draws.permutation(len(ids))[:round(SHARE * len(labels))]):
        image_id, kind = ids[place], KINDS[number % len(KINDS)]
        present = set(labels[image_id])
        other = int(draws.choice(sorted(set(range(n_classes)) - present)))
        gone = int(draws.choice(sorted(present)))
        present -= {gone} if kind != "added" else set()
        present |= {other} if kind != "removed" else set()
        wrong[image_id], kinds[image_id] = tuple(sorted(present)), kind
    return wrong, kinds


def write(source: Path, target: Path, seed: int) -> dict[str, str]:
    """A copy of a data set with wrong labels and without masks."""
    data = open_folder(source, check=False)
    labels, kinds = flipped(dict(data.labels), len(data.classes), seed)
    target.mkdir(parents=True, exist_ok=True)
    if not (target / "images").exists():
        (target / "images").symlink_to((source / "images").resolve())
    (target / "classes.txt").write_text("\n".join(data.classes) + "\n")
    (target / "labels.csv").write_text("name,classes\n" + "".join(
        f"{i},{';'.join(data.classes[c] for c in present)}\n" for i, present in labels.items()))
    return kinds


def main(source: Path, out: Path, seed: int) -> None:
    kinds = write(source, out / f"flipped-{seed}", seed)
    words = ("data=folder", f"data.root={out}/flipped-{seed}", "data.val_fraction=0", "steps=[train_cam]", f"seed={seed}",
             f"outputs={out}/outputs", "report.write=false")
    start = f"{out}/outputs/start-{seed}"   # the run's own classifier judges no image here, so it is not trained
    if not Path(start, "train_cam/weights.safetensors").exists():
        Pipeline.compose(*words, f"name=start-{seed}", "train_cam.steps=1").run()
    words = (*words, f"name=checked-{seed}", f"train_cam.weights={start}/train_cam/weights.safetensors")
    Pipeline.compose(*words).run()
    first = [doubt.image_id for doubt in Pipeline.compose(*words, "action=check_labels").check_labels()][:FIRST]
    found = {kind: f"{sum(kinds.get(i) == kind for i in first)} of {list(kinds.values()).count(kind)}" for kind in KINDS}
    print(json.dumps({"seed": seed, "flipped": len(kinds), f"in the first {FIRST}": len(kinds.keys() & set(first)), **found}))


if __name__ == "__main__":
    for value in sys.argv[3:] or ["0"]:
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(value))
