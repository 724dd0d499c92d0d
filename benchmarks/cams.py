"""The steps that make maps against the forward passes of their networks only; all steps of an image against the official ones."""

import copy
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.harness import CPU, Case, greatest_difference, share_of_unequal
from benchmarks.lpcam import cosine_maps
from benchmarks.random_walk import dense_walk
from benchmarks.setting import Run, drawn
from steps import cam_to_ir_label, make_cam, make_lpcam, make_sem_seg_labels
from steps.runtime.artifacts import Maps
from steps.runtime.networks import load_classifier
from wsss.cams.cam import class_activation_maps
from wsss.cams.gradcam import GradCAM
from wsss.cams.layercam import LayerCAM
from wsss.cams.maps import SCALES
from wsss.cams.method import CamMethod
from wsss.data.images import read_mask
from wsss.networks.folding import fold_batch_norm
from wsss.refinement.crf import crf_labels

CRF = "pydensecrf" if find_spec("pydensecrf") else "torch"
FG, BG, SEM_SEG_BG = 0.45, 0.25, 0.35    # official LPCAM: conf_fg_thres, conf_bg_thres, sem_seg_bg_thres


def official_inputs(path: Path, scales: tuple[float, ...] = SCALES) -> Iterator[Tensor]:
    """An image and its mirror image at each scale, (2, 3, h, w), NCHW (`VOC12ClassificationDatasetMSF`)."""
    image = iio.imread(path)
    for scale in scales:
        height, width = (round(side * scale) for side in image.shape[:2])
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        normal = ((resized / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).astype(np.float32).transpose(2, 0, 1)
        yield torch.from_numpy(np.stack([normal, normal[:, :, ::-1]]))


@torch.no_grad()
def official_cam(run: Run, image_id: str) -> tuple[Tensor, Tensor]:
    """Both maps of the present classes, (K, H/4, W/4) and (K, H, W)."""
    keys, (height, width) = list(run.dataset.labels[image_id]), run.dataset.size(image_id)
    outputs = []
    for batch in official_inputs(run.dataset.image_path(image_id)):
        out = F.relu(F.conv2d(run.classifier.backbone(batch.to(run.device)), run.classifier.classifier.weight))
        outputs.append(out[0] + out[1].flip(-1))
    maps = []
    for size in ((-(-height // 4), -(-width // 4)), (-(-height // 16) * 16, -(-width // 16) * 16)):
        total = sum(F.interpolate(out[None], size, mode="bilinear", align_corners=False)[0] for out in outputs)[keys]
        total = total[:, :height, :width]                 # without the padding
        maps.append(total / (F.adaptive_max_pool2d(total, (1, 1)) + 1e-5))
    return maps[0], maps[1]


@torch.no_grad()
def official_lpcam(run: Run, image_id: str) -> list[Tensor]:
    features = [run.classifier.backbone(batch) for batch in official_inputs(run.dataset.image_path(image_id))]
    prototypes = [[kind[index] for index in run.dataset.labels[image_id]] for kind in run.prototypes.values()]
    return cosine_maps(features, *prototypes, run.dataset.size(image_id))


@torch.no_grad()
def official_chain(run: Run, image_id: str) -> list[Tensor]:
    """The label for IRN and the pseudo mask of an image, (H, W) each, by the steps of the official code."""
    official_cam(run, image_id)
    cam, high_res = official_lpcam(run, image_id)
    image, classes = torch.from_numpy(iio.imread(run.dataset.image_path(image_id))), list(run.dataset.labels[image_id])
    ids = torch.tensor([0, *(index + 1 for index in classes)])
    seeds = [torch.cat([torch.full_like(high_res[:1], threshold), high_res]).argmax(0) for threshold in (FG, BG)]
    foreground, background = (ids[crf_labels(image, seed, len(ids), backend=CRF)] for seed in seeds)
    label = foreground.clone()
    label[foreground == 0] = 255
    label[(foreground + background) == 0] = 0
    edge = run.irn.edge_map(next(official_inputs(run.dataset.image_path(image_id), (1.0,))))[0]
    walked = F.interpolate(dense_walk(cam, edge)[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    walked = walked[:, :high_res.shape[1], :high_res.shape[2]]
    walked = torch.cat([torch.full_like(walked[:1], SEM_SEG_BG), walked / walked.max()])
    return [label.byte(), ids[walked.argmax(0)].byte()]


def our_chain(run: Run) -> list[Tensor]:
    """The same for the first image by our four steps, including files."""
    image_id = run.dataset.lists["train"][0]
    folders = [run.run(step, (image_id,)) for step in (make_cam, make_lpcam, cam_to_ir_label, make_sem_seg_labels)]
    return [torch.from_numpy(read_mask(folder / f"{image_id}.png")) for folder in folders[2:]]


def _size(quick: bool) -> tuple[int, int]:
    return (112, 150) if quick else (375, 500)


def _small(quick: bool) -> tuple[int, int]:
    return (75, 112) if quick else (213, 320)


def _forwards(run: Run, ids: tuple[str, ...]) -> Callable[[], None]:
    """The forward passes only, on prepared inputs."""
    inputs = [[x.to(run.device) for x in official_inputs(run.dataset.image_path(image_id))] for image_id in ids]
    network = load_classifier(run.context("make_cam", fresh=False))

    def forwards() -> None:
        with torch.inference_mode(), torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            for batches in inputs:
                for batch in batches:
                    network.features(batch)
    return forwards


def step_case(quick: bool, step, precision: str = "float32", n: int = 2, device: torch.device = CPU) -> Case:
    """A whole step on `n` images against its forward passes only."""
    size = _size(quick)
    run = Run(drawn(n, size), precision=precision, device=device)
    if step is make_lpcam:
        run.run(make_cam)
    return Case(f"{size[0]}x{size[1]}, 4 scales", lambda: run.run(step) and None, _forwards(run, run.dataset.lists["train"]),
                against="the bare forward passes of the same network, inputs ready", form=precision, per=n)


def _precision(quick: bool) -> Case:
    """make_cam in bf16 against float32."""
    n, size = 2, _size(quick)
    runs = {precision: Run(drawn(n, size), precision=precision) for precision in ("float32", "bf16")}

    def maps(precision: str) -> list[Tensor]:
        folder = runs[precision].run(make_cam)
        return [torch.from_numpy(np.load(folder / f"{image_id}.npy")) for image_id in runs[precision].dataset.lists["train"]]
    return Case(f"{size[0]}x{size[1]}, 4 scales", lambda: maps("bf16"), lambda: maps("float32"),
                greatest_difference, "ours in float32",
                "float32 -> bf16", n)


def cam_case(size: tuple[int, int], depth: str = "resnet50", device: torch.device = CPU) -> Case:
    run = Run(drawn(1, size, per_image=2), depth, device=device)
    run.classifier = copy.deepcopy(run.classifier).to(device)   # its backbone is also that of other runs
    image_id = run.dataset.lists["train"][0]

    def ours() -> list[Tensor]:
        folder = run.run(make_cam)
        return [Maps(folder).at(image_id, resolution) for resolution in ("strided", "full")]
    return Case(f"{size[0]}x{size[1]}, 4 scales", ours, lambda: list(official_cam(run, image_id)),
                greatest_difference, "a scale after the other, without files", "float32, NCHW -> channels last")


def gradient_case(size: tuple[int, int], method: CamMethod, difference: Callable | None = None, depth: str = "resnet50") -> Case:
    """The maps of a gradient method of two classes at four scales against CAM's, whose network may be folded."""
    run = Run(drawn(1, size, per_image=2), depth)
    image_id = run.dataset.lists["train"][0]
    inputs, classes = list(official_inputs(run.dataset.image_path(image_id))), list(run.dataset.labels[image_id])
    net = copy.deepcopy(run.classifier).to(memory_format=torch.channels_last)   # as the steps load it
    folded = fold_batch_norm(copy.deepcopy(net))
    weight = net.classifier.weight[classes].flatten(1)

    @torch.inference_mode()
    def cam() -> list[Tensor]:
        return [class_activation_maps(folded.features(x), weight) for x in inputs]

    def maps() -> list[Tensor]:
        of_scales = [method.maps(net, net.features, x, classes) for x in inputs]
        return [m * m[0, 0].numel() for m in of_scales]   # at the last stage Grad-CAM is CAM divided by the cells
    return Case(f"{size[0]}x{size[1]}, 4 scales, 2 classes", maps, cam, difference, "CAM on the folded network, inputs ready",
                "float32, channels last")


def chain_case(size: tuple[int, int], precision: str = "float32", depth: str = "resnet50") -> Case:
    run = Run(drawn(1, size, per_image=2), depth, precision=precision)
    image_id = run.dataset.lists["train"][0]
    return Case(f"{size[0]}x{size[1]}, 2 classes", lambda: our_chain(run), lambda: official_chain(run, image_id),
                lambda a, b: max(share_of_unequal(x, y) for x, y in zip(a, b)),
                f"the official steps one after the other, their CRF {CRF}; difference: share of pixels",
                f"float32, NCHW -> {precision}")


BENCHMARKS = {
    "make_cam": lambda quick: step_case(quick, make_cam),
    "make_cam_official": lambda quick: cam_case(_size(quick)),
    "make_cam_bf16": _precision,
    "make_lpcam": lambda quick: step_case(quick, make_lpcam),
    "gradcam": lambda quick: gradient_case(_small(quick), GradCAM(-1), greatest_difference),
    "layercam": lambda quick: gradient_case(_small(quick), LayerCAM([-3, -2, -1])),
    "chain": lambda quick: chain_case(_size(quick)),
    "chain_bf16": lambda quick: chain_case(_size(quick), "bf16"),
}
