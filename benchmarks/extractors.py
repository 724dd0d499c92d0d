"""The time of every kind of activation map beside torchcam's, on the networks of F-CAM's runtime table (Belharbi et al., WACV
2022).

    python -m benchmarks.extractors [--device cuda] [--networks VGG16] [--methods cam,gradcam] [--channels N] [--repeats N]

An image of 224 px, 200 classes, the map of one class, enlarged to 224 px (bilinear); random weights. torchcam gets the network as
its users have it; ours is prepared as make_cam does it (channels last, folded where a method needs no gradients). Both forms are
called alternately: medians of the times, and of the ratios of the pairs (ours / torchcam; the target is at most 1.05).
"Without the forward pass" begins after the first forward pass of the image: the published rows of CAM, Grad-CAM and Score-CAM
are such times, F-CAM's own include it.

Methods that score masked copies of the image are also compared with the bare forward passes of the folded network in the same
batches (the target is at most 1.1). On a CPU they score the first 64 masks, of SS-CAM and IS-CAM those of the first copy; times
marked ~ are extrapolated from these. A GPU scores all masks of a copy. Times on a CPU are processor time of one core, which other
work on the machine disturbs least.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
import torchcam.methods
from torch import Tensor

from benchmarks.extractors_table import PUBLISHED, Row, table
from benchmarks.harness import CPU, SLOW, Case, greatest_difference, machine, timed
from pipeline.config import compose, typed
from steps.runtime.memory import keep_heap
from wsss.cams import gradients, masking
from wsss.cams.method import CamMethod
from wsss.classifiers.classifier import Classifier
from wsss.networks.folding import fold_batch_norm
from wsss.resize import resize

SIDE, N_CLASSES, CLASS, BATCH = 224, 200, 7, 32
CHANNELS = 64         # masks that are scored on a CPU
LEAST = 0.02          # seconds of a measurement: shorter calls are repeated
NETWORKS = {"VGG16": "vgg16_gap_28", "Inception v3": "inception_v3_28", "ResNet-50": "resnet50_28"}
# Ours -> torchcam's. LayerCAM is that of the last stage alone, as in F-CAM's table.
METHODS = {"cam": "CAM", "signed_cam": "CAM", "gradcam": "GradCAM", "gradcam_pp": "GradCAMpp",
           "smooth_gradcam_pp": "SmoothGradCAMpp", "xgradcam": "XGradCAM", "layercam": "LayerCAM", "hirescam": None,
           "eigencam": None, "backprop": None, "guided_backprop": None, "guided_gradcam": None, "occlusion": None,
           "scorecam": "ScoreCAM", "sscam": "SSCAM", "iscam": "ISCAM"}
SAME = ("signed_cam", "gradcam", "xgradcam", "layercam")   # maps that are torchcam's on these networks
TO_IMAGE = ("backprop", "guided_backprop", "guided_gradcam")   # their gradients are those of the whole forward pass


class Forms(NamedTuple):
    """The calls that are compared, each from the image to its map (1, 1, 224, 224); None: there is none.

    `factor`: by which the times are multiplied, 1 if nothing is left out.
    """

    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor] | None
    ours_after: Callable[[], Tensor] | None     # without the first forward pass
    theirs_after: Callable[[], Tensor] | None
    bare: Callable[[], Any] | None
    factor: float


@cache
def network(preset: str) -> Classifier:
    """With a backbone of `conf/backbone`, in evaluation mode, on the CPU; do not change it."""
    config = typed(compose([f"backbone={preset}", "classifier=gap"]))
    return config.classifier.new(config.backbone.new("frozen_batch"), N_CLASSES).eval()


@cache
def settings(name: str) -> CamMethod:
    """With the values of `conf/cam`."""
    return typed(compose([f"cam={name}"])).cam


def method(name: str) -> CamMethod:
    """With masks in batches as torchcam's, and of SS-CAM and IS-CAM one copy."""
    found = settings(name)
    changes = {"batch_size": BATCH, "samples": 1} if name != "smooth_gradcam_pp" else {}
    if name == "layercam":
        changes = {"stages": [-1]}
    return replace(found, **{key: value for key, value in changes.items() if hasattr(found, key)})


def forms(net: Classifier, name: str, device: torch.device = CPU, channels: int | None = None) -> Forms:
    """The forms of a method on a network. `channels`: masks that are scored; None: all."""
    x, ours = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device), method(name)
    mine, theirs = copy.deepcopy(net).to(device), copy.deepcopy(net).to(device)
    mine.requires_grad_(False).to(memory_format=torch.channels_last)
    if not ours.gradients:
        fold_batch_norm(mine)
    count, factor, bare = _masks(name, mine, channels), 1.0, None
    if count:
        cells = _all_masks(name, mine)
        factor = cells / count * getattr(settings(name), "samples", 1)
        bare = _bare(mine, x, count)

    def maps(features_of: Callable[[Tensor], Tensor] = mine.features) -> Tensor:
        limited = _first(count) if count else nullcontext()
        with torch.inference_mode(not ours.gradients), torch.set_grad_enabled(ours.gradients), limited:
            return resize(ours.maps(mine, features_of, x, [CLASS]).detach(), (SIDE, SIDE))

    with_it, without = _torchcam(theirs, name, x, count) if METHODS[name] else (None, None)
    return Forms(maps, with_it, None if name in TO_IMAGE else _without(mine, x, maps), without, bare, factor)


def _without(net: Classifier, x: Tensor, maps: Callable[..., Tensor]) -> Callable[[], Tensor]:
    """`maps` without the forward pass of the image: its features, and the graph of its logits, are known."""
    last, compute = [len(net.backbone.stage_modules) - 1], gradients._forward
    with gradients.differentiable(x):
        known = compute(net, x, last)
    features = known[0][0].detach()

    def forward(net: Classifier, images: Tensor, numbers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        return known if images is x and list(numbers) == last else compute(net, images, numbers)

    def after() -> Tensor:
        gradients._forward = forward   # `unittest.mock.patch` would take a tenth of a millisecond
        try:
            return maps(lambda images: features if images is x else net.features(images))
        finally:
            gradients._forward = compute
    return after


def _all_masks(name: str, net: Classifier) -> int:
    """The masks of a copy, 0 for a method without masks."""
    if name == "occlusion":
        return (SIDE // method(name).stride) ** 2
    return net.backbone.feature_channels if name in ("scorecam", "sscam", "iscam") else 0


def _masks(name: str, net: Classifier, channels: int | None) -> int:
    return min(_all_masks(name, net), channels or sys.maxsize)


def _bare(net: Classifier, x: Tensor, count: int) -> Callable[[], None]:
    batches = [x.expand(min(BATCH, count - start), -1, -1, -1).contiguous() for start in range(0, count, BATCH)]

    def forwards() -> None:
        with torch.inference_mode():
            for batch in batches:
                net(batch)
    return forwards


@contextmanager
def _first(count: int) -> Iterator[None]:
    """Score only the first masks; the scores of the others are 0."""
    full = masking.masked_scores

    def scores(net: Any, features_of: Any, image: Any, masks: Any, number: int, *more: Any) -> Tensor:
        found = full(net, features_of, image, masks, min(count, number), *more)
        return F.pad(found, (0, 0, 0, number - len(found)))
    with patch.object(masking, "masked_scores", scores):
        yield


def _torchcam(net: Classifier, name: str, x: Tensor, count: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """torchcam's map with and without the forward pass."""
    base, options = getattr(torchcam.methods, METHODS[name] or ""), {}
    if count:
        class Limited(base):
            """Scores the first masks only, as `_first`."""

            def _get_score_weights(self, activations: list[Tensor], *more: Any, **named: Any) -> list[Tensor]:
                found = super()._get_score_weights([each[:, :count] for each in activations], *more, **named)
                return [F.pad(weight, (0, each.shape[1] - weight.shape[1])) for weight, each in zip(found, activations)]
        base, options = Limited, {"batch_size": BATCH, **({"num_samples": 1} if name != "scorecam" else {})}
    fc = {"fc_layer": net.classifier} if METHODS[name] == "CAM" else {}
    extractor = base(net, net.backbone.stage_modules[-1], **fc, **options)
    graph = method(name).gradients
    keep = {"retain_graph": True} if graph else {}

    last: list[Tensor] = []   # the scores of the last forward pass, whose activations the hooks keep

    def forward() -> Tensor:
        with torch.set_grad_enabled(graph):
            last[:] = [net(x)]
        return last[0]

    def map_of(scores: Tensor) -> Tensor:
        found, = extractor(CLASS, scores, normalized=False, **keep)
        return F.interpolate(found[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)
    forward()
    return lambda: map_of(forward()), lambda: map_of(last[0])


def measure(name: str, kind: str, found: Forms, repeats: int) -> Row:
    scored = found.bare is not None
    if scored:
        repeats = max(1, repeats // 3)
    times = _alternately([found.ours, found.theirs, found.bare], repeats)
    # a forward pass is one of a hundred or more
    after = [[], []] if scored else _alternately([found.ours_after, found.theirs_after], repeats)
    numbers = PUBLISHED.get(kind)
    return Row(name, kind, found.factor > 1, *_medians(times[0], times[1], found.factor), *_medians(*after, 1.0),
               _medians(times[0], times[2], 1.0)[2], numbers[list(NETWORKS).index(name)] / 1e3 if numbers else None)


def _alternately(calls: list[Callable | None], repeats: int) -> list[list[float]]:
    """The seconds of each call, `repeats` times after a warm-up, or once if a call is slow; processor time unless a GPU is
    used."""
    clock = "wall" if torch.cuda.is_initialized() else "cpu"
    first = [getattr(timed(call)[0], clock) if call else 0.0 for call in calls]
    if max(first) > SLOW:
        return [[seconds] if call else [] for call, seconds in zip(calls, first)]
    often = [1 if not call or seconds > LEAST else 1 + int(LEAST / max(1e-5, timed(call)[0].wall))
             for call, seconds in zip(calls, first)]
    times: list[list[float]] = [[] for _ in calls]
    for number in range(repeats):
        for i in range(len(calls))[::1 if number % 2 else -1]:   # each form is the first one half of the time
            call = calls[i]
            if call:
                seconds = timed(lambda call=call, n=often[i]: [call() for _ in range(n)])[0]
                times[i].append(getattr(seconds, clock) / often[i])
    return times


def _medians(ours: list[float], theirs: list[float], factor: float) -> tuple[float | None, float | None, float | None]:
    own = factor * statistics.median(ours) if ours else None
    if not theirs or not ours:
        return own, None, None
    return own, factor * statistics.median(theirs), statistics.median(a / b for a, b in zip(ours, theirs))


def case(preset: str, name: str, device: torch.device, quick: bool) -> Case:
    """A row of `benchmarks.gpu`: all masks of a copy, in one call; `quick`: a small network and few masks."""
    found = forms(network("alexnet_star_gap" if quick else preset), name, device, 2 if quick else None)
    theirs, scored = found.theirs, found.bare is not None
    return Case(f"{SIDE}x{SIDE}" + ", one copy" * (name in ("sscam", "iscam")), (lambda: found.ours) if scored else found.ours,
                (lambda: theirs) if scored else theirs, _difference if name in SAME else None, "torchcam",
                "float32, NCHW -> channels last", once=scored)


def _difference(theirs: Tensor, ours: Tensor) -> float:
    """The greatest difference, as a share of the greatest value."""
    return greatest_difference(theirs, ours) / float(theirs.abs().max())


def cases() -> dict[str, Callable[[torch.device, bool], Case]]:
    """The rows of `benchmarks.gpu`."""
    kinds = [name for name, theirs in METHODS.items() if theirs]
    return {f"{name} {of}": partial(case, preset, name) for of, preset in NETWORKS.items() for name in kinds}


def title(name: str) -> str:
    net = network(NETWORKS[name])
    count, side = sum(parameter.numel() for parameter in net.parameters()) / 1e6, SIDE // net.backbone.feature_stride
    return f"{name}: #PCL {count:.1f} M, #NFM {net.backbone.feature_channels}, SFM {side}x{side}, #PDEC -"


def main(words: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--channels", type=int, help=f"masks that are scored; {CHANNELS} on a CPU, all on a GPU")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args(words)
    device, rows, start = torch.device(options.device), [], time.perf_counter()
    channels = options.channels or (None if device.type == "cuda" else CHANNELS)
    if device.type == "cuda":
        torch.cuda.init()
    print(machine() + (f"; {torch.cuda.get_device_name()}" if device.type == "cuda" else ""), flush=True)
    names = options.networks.split(",")
    for name in names:
        for kind in options.methods.split(","):
            print(f"{time.perf_counter() - start:6.0f} s  {name} {kind}", file=sys.stderr, flush=True)
            rows.append(measure(name, kind, forms(network(NETWORKS[name]), kind, device, channels), options.repeats))
            if options.json:
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(table(rows, {name: title(name) for name in names}))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_heap()   # as every run does
    main()
