"""The first half of make_lpcam: the local prototypes of each class, and their nearest features.

`prototypes.npz` contains every centre, kept or not:

    class_index (n,) int64     0-based class
    is_background (n,) bool    centre of background (True) or of foreground features
    center (n, D) float32      arithmetic mean of raw features
    probability (n,) float32   softmax over the classes of centre . classifier weight, at the class
    kept (n,) bool             whether it is a prototype
    mean (D,) float32          subtracted from features and centres before the cosine; 0 without `centred`
    near_id (n, m) str, near_place (n, m, 2) float32
                               image id and centre (y, x) of the cells of its m nearest features ("" if fewer), as fractions of
                               the height and the width of the image
"""

import shutil
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steps.parts.imported_prototypes import FILE, NEEDED, read_imported
from steps.runtime.amn import labelled_features
from steps.runtime.artifacts import Maps, read_arrays, write_arrays
from steps.runtime.concurrency import max_concurrent, ordered_map
from steps.runtime.context import StepContext, require_prepared
from steps.runtime.memory import trim_heap
from steps.runtime.networks import network_input
from wsss.cams.clustering import KMeans, kmeans, kmeans_pytorch
from wsss.cams.lpcam import class_probability, mean_direction, select_prototypes, split_cells
from wsss.cams.maps import grids
from wsss.classifiers.classifier import Classifier
from wsss.networks.amn import AMN
from wsss.seeding import generator

MEAN = "mean.npz"   # in the folder of the finished classes
NEAREST = 9
SHOWN = 8   # classes in a warning

DRAWN_AS = ("foreground", "context")   # part of the random seed: other words would draw other prototypes


@dataclass(frozen=True)
class Vectors:
    """The prototype vectors for one image: a row for each of its K classes."""

    foreground: torch.Tensor       # (K, D)
    background: torch.Tensor       # (K, D), zero without background prototypes
    has_foreground: torch.Tensor   # (K,) bool


class Prototypes:
    """The kept centres of all classes, combined into one foreground and one background vector per class."""

    def __init__(self, path: Path, n_classes: int, device: torch.device):
        self.arrays = read_arrays(path, NEEDED)
        dimension = self.arrays["center"].shape[1]
        mean = self.arrays.get("mean", np.zeros(dimension, np.float32))   # official prototypes have none
        self.vectors = torch.zeros(2, n_classes, dimension)
        for background in (0, 1):
            for index in range(n_classes):
                self.vectors[background, index] = mean_direction(torch.from_numpy(self._kept(index, bool(background)) - mean))
        self.vectors = self.vectors.to(device)
        self.mean = torch.from_numpy(mean).to(device) if mean.any() else None

    def _kept(self, index: int, background: bool) -> np.ndarray:
        arrays = self.arrays
        return arrays["center"][(arrays["class_index"] == index) & (arrays["is_background"] == background) & arrays["kept"]]

    def of(self, classes: list[int]) -> Vectors:
        foreground, background = self.vectors[:, classes]
        return Vectors(foreground, background, foreground.any(dim=1))

    def summary(self) -> dict[str, Any]:
        kept, background = self.arrays["kept"], self.arrays["is_background"]
        return {"foreground": int((kept & ~background).sum()), "background": int((kept & background).sum()), "centers": len(kept)}


class _Sample:
    """At most `limit` features, those with the smallest random keys, so the choice depends on the seed and not on the order."""

    def __init__(self, dimension: int, limit: int, most: int):
        self.limit, self.size = limit, 0
        rows = min(most, limit + max(limit // 4, 1024))
        self.features = torch.empty(rows, dimension)
        self.keys, self.cells = np.empty(rows), np.empty((rows, 5), np.int32)   # cell: image number, row, column, grid (h, w)

    def add(self, features: torch.Tensor, keys: np.ndarray, cells: np.ndarray) -> None:
        while len(keys):
            if self.size == len(self.keys):
                self._keep_smallest()
            n = min(len(keys), len(self.keys) - self.size)
            rows = slice(self.size, self.size + n)
            self.features[rows], self.keys[rows], self.cells[rows] = features[:n].cpu(), keys[:n], cells[:n]
            features, keys, cells, self.size = features[n:], keys[n:], cells[n:], self.size + n

    def result(self) -> tuple[torch.Tensor, np.ndarray]:
        if self.size > self.limit:
            self._keep_smallest()
        return self.features[:self.size], self.cells[:self.size]

    def _keep_smallest(self) -> None:
        keep = np.sort(np.argpartition(self.keys[:self.size], self.limit - 1)[:self.limit])
        arrays: tuple[Any, ...] = (self.features, self.keys, self.cells)
        for array in arrays:
            array[:self.limit] = array[keep]
        self.size = self.limit


def make_prototypes(context: StepContext, network: Classifier | AMN, cams: Maps, weight: torch.Tensor) -> Prototypes:
    """Cluster the features of every class, select its prototypes and write `prototypes.npz`; or write imported prototypes.

    Each class is done by one process: its result is kept in `prototypes/INDEX.npz` until all are done. Only the features of one
    class are in memory (`max_features_per_class` of foreground and of background). `weight` (C, D): of the classes, for the
    probability of a centre.
    """
    path, n_classes = context.folder / FILE, len(context.dataset.classes)
    parts = context.folder / "prototypes"
    if context.settings.prototypes:
        context.runtime.group.broadcast(lambda: _write_imported(context, path, n_classes, network.backbone.feature_channels))
    if not context.runtime.group.broadcast(path.exists):
        require_prepared(context.runtime, path)
        images = prototype_images(context)
        context.runtime.group.broadcast(lambda: _write_mean(context, network, parts / MEAN))
        mean = torch.from_numpy(read_arrays(parts / MEAN, ("mean",))["mean"])
        for index in context.runtime.part(range(n_classes)):
            context.runtime.check_stop()
            if not (parts / f"{index}.npz").exists():
                arrays = _class_prototypes(context, index, images[index], network, weight, cams, mean)
                write_arrays(parts / f"{index}.npz", **arrays)
            context.runtime.progress(index + 1, n_classes, f"prototypes of {context.dataset.classes[index]}")
        context.runtime.group.all_gather(None)   # wait until all classes are done
        context.runtime.group.broadcast(lambda: _join(context, parts, path))
    if context.runtime.group.is_main and not context.runtime.prepared:
        shutil.rmtree(parts, ignore_errors=True)
    return Prototypes(path, n_classes, context.runtime.device)


def _write_imported(context: StepContext, path: Path, n_classes: int, dimension: int) -> None:
    """Write the prototypes of the configured file, if not done yet."""
    if path.exists():
        return
    where = f"{context.name}.prototypes={context.settings.prototypes}"
    imported = read_imported(context.settings.prototypes, where, n_classes, dimension)
    kept = set(imported["class_index"][imported["kept"] & ~imported["is_background"]].tolist())
    if without := [name for index, name in enumerate(context.dataset.classes) if index not in kept]:
        some = ", ".join(without[:SHOWN]) + ", ..." * (len(without) > SHOWN)
        context.runtime.warn(f"{where} has no foreground prototype of {len(without)} of {n_classes} classes ({some}): their CAMs "
                             "are used unchanged. Use prototypes of this data set")
    write_arrays(path, **imported)


def _join(context: StepContext, parts: Path, path: Path) -> None:
    """Merge the prototypes of all classes into one file."""
    classes = context.dataset.classes
    loaded = [read_arrays(parts / f"{index}.npz") for index in range(len(classes))]
    if without := [name for name, arrays in zip(classes, loaded) if arrays["is_background"].all()]:
        some = ", ".join(without[:SHOWN]) + ", ..." * (len(without) > SHOWN)
        context.runtime.warn(f"{len(without)} of {len(classes)} classes have no feature above {context.name}.cam_threshold="
                     f"{context.settings.cam_threshold} ({some}): their CAMs are used unchanged. Train longer or lower it, "
                     "unless no image shows them")
    write_arrays(path, mean=read_arrays(parts / MEAN, ("mean",))["mean"],
                 **{name: np.concatenate([arrays[name] for arrays in loaded]) for name in loaded[0]})


def _write_mean(context: StepContext, network: Classifier | AMN, path: Path) -> None:
    """Write the mean (D,) float32 of the features over all cells of all images of the list, at scale 1.0; 0 without `centred`.
    Does nothing if the file exists."""
    if path.exists():
        return
    total, cells = torch.zeros(network.backbone.feature_channels, dtype=torch.float64), 0
    for number, image_id in enumerate(context.lists["prototypes"] if context.settings.centred else (), start=1):
        context.runtime.check_stop()
        with torch.inference_mode():
            features = _features(context, network, image_id).flatten(1)   # (D, h w)
        total, cells = total + features.double().sum(dim=1).cpu(), cells + features.shape[1]
        context.runtime.progress(number, len(context.lists["prototypes"]), "mean of the features")
        trim_heap()
    write_arrays(path, mean=(total / max(cells, 1)).float().numpy())


def prototype_images(context: StepContext) -> list[list[str]]:
    """The images of each class whose features are clustered: all images of the list with the class, or a random draw of them.

    The draw is that of the official code (LPCAM `step_coco/make_lpcam.py`, split_100): for one class after another from one
    legacy NumPy generator, with replacement, from the images sorted by id. An image drawn twice counts twice.
    """
    settings, labels = context.settings, context.dataset.labels
    ids = context.lists["prototypes"] if settings.prototype_images is None else sorted(context.lists["prototypes"])
    showing: list[list[str]] = [[] for _ in context.dataset.classes]
    for image_id in ids:
        for index in labels[image_id]:
            showing[index].append(image_id)
    if settings.prototype_images is None:
        return showing
    draws = np.random.RandomState(settings.prototype_seed)
    return [[images[i] for i in draws.choice(len(images), settings.prototype_images)] if images else [] for images in showing]


def _class_prototypes(context: StepContext, index: int, ids: list[str], network: Classifier | AMN,
                      weight: torch.Tensor, cams: Maps, mean: torch.Tensor) -> dict[str, np.ndarray]:
    settings, name = context.settings, context.dataset.classes[index]
    samples = _gather(context, index, ids, network, cams)
    found = {}
    for kind, drawn_as, sample in zip(("foreground", "background"), DRAWN_AS, samples, strict=True):
        features, cells = sample.result()
        if settings.centred:
            features -= mean
        result = _cluster(features.to(context.runtime.device), settings, generator(context.seed, context.name, drawn_as, name))
        found[kind] = result.centers + mean.to(context.runtime.device), *_nearest(result, cells, ids)
    centers = [found[kind][0] for kind in ("foreground", "background")]
    kept = select_prototypes(centers[0], centers[1], weight, index, fg_threshold=settings.fg_threshold,
                             bg_low=settings.background_low, bg_high=settings.background_high, minimum=settings.min_prototypes)
    center = torch.cat(centers)
    return {"class_index": np.full(len(center), index), "is_background": np.repeat([False, True], [len(c) for c in centers]),
            "center": center.cpu().numpy(), "probability": class_probability(center, weight)[:, index].cpu().numpy(),
            "kept": torch.cat(kept).cpu().numpy(),
            "near_id": np.concatenate([found[kind][1] for kind in found]),
            "near_place": np.concatenate([found[kind][2] for kind in found])}


def _cluster(features: torch.Tensor, settings: Any, draws: np.random.Generator) -> KMeans:
    if settings.kmeans_backend.value == "kmeans_pytorch" and len(features) > 1:
        return kmeans_pytorch(features, settings.n_clusters, generator=draws)
    return kmeans(features, settings.n_clusters, generator=draws, max_iterations=settings.kmeans_iterations,
                  tolerance=settings.kmeans_tolerance, total_shift=settings.kmeans_total_shift,
                  init=settings.kmeans_init.value)


def _features(context: StepContext, network: Classifier | AMN, image_id: str) -> torch.Tensor:
    """The features (D, h, w) of an image at its size."""
    return labelled_features(context, network, image_id)(network_input(context, network, image_id))[0]


def _gather(context: StepContext, index: int, ids: list[str], network: Classifier | AMN, cams: Maps) -> tuple[_Sample, _Sample]:
    """The foreground and the background features of a class, at scale 1.0, not flipped (official). `ids` may repeat."""
    limit, dimension = context.settings.max_features_per_class, network.backbone.feature_channels
    sizes = [(facts["height"], facts["width"]) for facts in map(cams.facts, ids)]
    most = sum(h * w for size in sizes for h, w in grids(*size, network.backbone.feature_stride, (1.0,)))
    samples = _Sample(dimension, limit, most), _Sample(dimension, limit, most)
    first = {image_id: number for number, image_id in reversed(list(enumerate(ids)))}

    def split(image_id: str) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        cam = cams.at(image_id, "full", context.runtime.device)[cams.classes(image_id).index(index)]   # (H, W)
        with torch.inference_mode():
            features = _features(context, network, image_id)   # (D, h, w)
        return features, split_cells(cam, features.shape[1:], context.settings.cam_threshold)
    drawn = Counter(ids)
    with closing(ordered_map(context, split, drawn, max_concurrent(context.runtime.device))) as results:
        for image_id, result in results:
            features, masks = result()
            draws = generator(context.seed, context.name, "sample", index, image_id)
            for _ in range(drawn[image_id]):
                keys = draws.random(features[0].numel())
                for sample, mask in zip(samples, masks, strict=True):
                    flat = mask.flatten().cpu().numpy()
                    cells = np.stack(np.broadcast_arrays(first[image_id], *np.nonzero(mask.cpu().numpy()), *mask.shape), axis=1)
                    sample.add(features.flatten(1).T[mask.flatten()], keys[flat], cells)
            trim_heap()
    return samples


def _nearest(result: KMeans, cells: np.ndarray, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Image ids (K, NEAREST) and places (K, NEAREST, 2) of the features most similar to each centre."""
    near_id = np.full((len(result.centers), NEAREST), "", dtype=f"<U{max(map(len, ids), default=1)}")
    near_place = np.zeros((len(result.centers), NEAREST, 2), np.float32)
    for cluster in range(len(result.centers)):
        best = cells[result.nearest(cluster, NEAREST).cpu().numpy()]
        near_id[cluster, :len(best)] = [ids[number] for number in best[:, 0]]
        near_place[cluster, :len(best)] = (best[:, 1:3] + 0.5) / best[:, 3:]
    return near_id, near_place
