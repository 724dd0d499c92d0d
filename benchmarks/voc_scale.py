"""All eight steps on VOC-sized pictures, with a projection to VOC: `python -m benchmarks.voc_scale [--images N]`.

Draws N pictures in the layout of VOC (with `--masks FOLDER` in the shapes of real masks), runs `experiment=lpcam_voc12` on them
and prints for each step the time, images per second, peak memory, disk space, and the time projected to the 10,582 images of
train_aug. The lists have VOC's proportions. ImageNet weights are not downloaded: the networks start from random weights, with
which every step does the same work except k-means, whose rounds depend on the features. Learning rates are lowered so that the
losses stay finite. `KEY=VALUE` arguments are passed to the pipeline: `precision=bf16 device=cuda`.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.harness import machine
from benchmarks.pictures import draw_dataset
from benchmarks.setting import backbone
from pipeline import Pipeline
from steps.runtime.context import Runtime, Source, StepContext
from steps.runtime.datasets import prepare_dataset
from steps.runtime.networks import load_classifier
from wsss.data.images import normalise, resize_image, scaled_size
from wsss.networks.weights import save_weights

TRAIN_AUG, TRAIN, VAL = 10_582, 1_464, 1_449


def draw_voc(root: Path, n: int, masks: Path | None) -> None:
    """Draw `n` pictures of train_aug and, in VOC's proportion, pictures of val, in the layout of VOC."""
    n_val = max(1, round(n * VAL / TRAIN_AUG))
    given = sorted(masks.glob("*.png")) if masks else []
    ids = draw_dataset(root, n + n_val, masks=given, folders=("JPEGImages", "SegmentationClassAug")).lists["train"]
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, chosen in (("train_aug", ids[:n]), ("train", ids[:max(1, round(n * TRAIN / TRAIN_AUG))]), ("val", ids[n:])):
        (lists / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in chosen))


def bare_forward(pipeline: Pipeline, n: int = 10) -> float:
    """Seconds per image of make_cam's forward passes only, with inputs on the device."""
    device, ids, folder = pipeline.device, pipeline.dataset.lists["train_aug"][:n], pipeline.folder.path
    context = StepContext(name="bare_forward", settings=None, dataset=pipeline.dataset, lists={}, folder=folder,
                          inputs={"classifier": (Source("train_cam", folder=folder / "train_cam"),)},
                          runtime=Runtime(device=device, precision=pipeline.config.precision.value))
    network = load_classifier(context)
    inputs = []
    for image_id, scale in itertools.product(ids, pipeline.config.make_cam.scales):
        image = pipeline.dataset.image(image_id)
        resized = normalise(resize_image(image, scaled_size(image.shape[:2], scale)))
        inputs.append(torch.stack([resized, resized.flip(-1)]).to(device))
    with torch.inference_mode(), context.runtime.autocast():
        for _ in range(2):                # the first is the warm-up
            start = time.perf_counter()
            for batch in inputs:
                network.features(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(ids)


def measure(n: int, masks: Path | None = None, overrides: tuple[str, ...] = ()) -> list[dict]:
    """A dict per step: step, images, seconds, images_per_s, host_mb, cuda_mb, disk_mb, projected_s, and what the plan expected:
    expected_host_mb, expected_cuda_mb."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "VOC2012")
        draw_voc(root, n, masks)
        save_weights(Path(folder, "random.safetensors"), backbone("resnet50"))
        pipeline = Pipeline.compose("experiment=lpcam_voc12", f"data.root={root}", f"outputs={folder}/outputs", "name=voc",
                                    f"backbone.weights={folder}/random.safetensors", "train_cam.lr=1e-3",
                                    "train_irn.lr=1e-3", *overrides)
        prepare_dataset(pipeline.config.data)
        expected = {planned.name: planned.expected for planned in pipeline.plan()}
        pipeline.run()
        bare = bare_forward(pipeline)
        found = []
        for step in pipeline.config.steps:
            facts = json.loads((pipeline.folder.path / step / "manifest.json").read_text())
            images, seconds = max(facts["lists"].get(purpose, 0) for purpose in ("ids", "scored")), max(facts["seconds"], 0.01)
            peak = facts["peak_memory_mb"]
            found.append({"step": step, "images": images, "seconds": seconds, "images_per_s": images / seconds,
                          "host_mb": peak.get("host"), "cuda_mb": peak.get("cuda"), "disk_mb": facts["disk_mb"],
                          "projected_s": seconds * TRAIN_AUG / n, "expected_host_mb": expected[step].memory_mb,
                          "expected_cuda_mb": expected[step].gpu_mb})
            if step == "make_cam":
                found[-1]["of_bare_forward"] = bare * images / seconds
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=200, help="pictures in train_aug")
    parser.add_argument("--masks", type=Path, help="a folder of palette PNGs whose shapes the pictures take")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("overrides", nargs="*", help="for example precision=bf16 device=cuda")
    options = parser.parse_args()
    rows = measure(options.images, options.masks, tuple(options.overrides))
    gpu = f"; {torch.cuda.get_device_name()}" if rows[0]["cuda_mb"] else ""
    print(f"{machine()}{gpu}; {torch.get_num_threads()} threads; {options.images} pictures; random weights")
    for row in rows:
        cuda = f", {row['cuda_mb']:.0f} MiB of the GPU" if row["cuda_mb"] else ""
        share = f", {row['of_bare_forward']:.0%} of the bare forward's speed" if "of_bare_forward" in row else ""
        print(f"{row['step']:20} {row['seconds']:8.1f} s {row['images_per_s']:8.2f} images/s {row['host_mb'] or 0:6.0f} MiB"
              f"{cuda}, disk {row['disk_mb']:.1f} MiB, {TRAIN_AUG:,} images: {row['projected_s'] / 60:.1f} min{share}")
    together, projected = (sum(row[key] for row in rows) for key in ("seconds", "projected_s"))
    print(f"together {together:.0f} s, projected {projected / 3600:.2f} h")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
