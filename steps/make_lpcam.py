"""Make LPCAM maps: the similarity of each position to a class's foreground prototypes, minus that to its background prototypes.

Paper: Chen & Sun, "Extracting Class Activation Maps from Non-Discriminative Features as well", CVPR 2023, section 3;
official file: `step/make_lpcam.py`. Reads the classifier and the CAMs. First it clusters the features of each class
(`steps.parts.prototypes`), then it writes for each image `ID.npy` in the format of make_cam and, with `save_fg_maps`,
`fg_only/ID.npy`: the maps without the background term (LPCAM-F).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.parts.after_lpcam import after_lpcam, as_forward, refined
from steps.parts.imported_prototypes import FILE, check_imported, digest_of_imported
from steps.parts.official import OfficialMaps
from steps.parts.outcome import MARGIN, Advice, Change, Outcome, Remark
from steps.parts.pieces import Column, Sheet
from steps.parts.shown import map_columns, prototype_sheets
from steps.runtime.artifacts import FG_ONLY, Maps, encode_array
from steps.runtime.context import StepContext, require_package
from steps.runtime.inference import Made, for_each_image
from steps.step import IMAGES, Lists, Needs, Setup, StepSettings, facts

if TYPE_CHECKING:
    import torch

    from steps.parts.prototypes import Prototypes
    from wsss.classifiers.classifier import Classifier
    from wsss.networks.amn import AMN as AMNNetwork

VERSION = 3
KIND = IMAGES
MAPS = {FG_ONLY: "LPCAM-F", "": "LPCAM"}
LOG_ONLY = frozenset({"prototype_split"})
COMMON = (FILE,)
AMN = "amn"   # the role of a row whose features are those of AMN, instead of "classifier"
OFFICIAL = OfficialMaps("lpcam_mask", lpcam=True)
# The settings of the clustering. They have no effect if prototypes are imported.
CLUSTERING = {"prototype_images", "prototype_seed", "n_clusters", "cam_threshold", "fg_threshold", "min_prototypes",
              "background_low", "background_high", "max_features_per_class", "kmeans_iterations", "kmeans_init",
              "kmeans_tolerance", "kmeans_total_shift", "kmeans_backend", "centred"}


class KMeansInit(Enum):
    plus_plus = "k-means++"          # each centre far, in cosine distance, from the previous ones
    random = "random"                # features drawn uniformly


class Taps(Enum):
    centre = "centre"                # of a convolution: what the feature of a cell adds to the logits of this cell
    all = "all"                      # their sum: the logits in the middle of a region of equal features


class KMeansBackend(Enum):
    torch = "torch"
    kmeans_pytorch = "kmeans_pytorch"


@dataclass
class Settings(StepSettings):
    """`make_lpcam.`: the values and their sources are in `conf/recipe/`."""

    split: str | None                # null: what the later steps read
    prototype_split: str | None      # the list whose features are clustered; null: train
    prototype_images: int | None     # images per class drawn from that list with replacement; null: all of it
    prototype_seed: int              # seed of that draw
    n_clusters: int                  # clusters of foreground features per class, and of background features
    cam_threshold: float             # features with a CAM above it are foreground, below it background
    fg_threshold: float              # a foreground centre is kept if its class probability is above this
    min_prototypes: int              # least number of foreground centres to keep, the most probable ones
    background_low: float            # a background centre is kept if its class probability is between these two
    background_high: float
    max_features_per_class: int      # foreground features, and background features; more are sampled by seed
    kmeans_iterations: int
    kmeans_init: KMeansInit
    kmeans_tolerance: float          # stop if the total shift of the centres, relative to the sum of their norms, is below this,
    kmeans_total_shift: float        # or the total shift itself is below this
    kmeans_backend: KMeansBackend
    centred: bool                    # subtract the mean of all features before the cosine
    relu_without_background: bool    # apply the ReLU also to a class without background prototypes
    save_fg_maps: bool
    taps: Taps                       # of convolutions in place of a linear head (AMN, MCTformer): the weights of the classes
    prototypes: str | None           # a prototypes.npz, or a folder with the two official files, instead of clustering

    def __post_init__(self) -> None:
        for name in ("n_clusters", "kmeans_iterations", "min_prototypes"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("cam_threshold", "fg_threshold", "background_low", "background_high"):
            self.require(0 <= getattr(self, name) <= 1, name, "a number in [0, 1]")
        self.require(self.background_low <= self.background_high, "background_low",
                     f"at most {self.step}.background_high={self.background_high}")
        self.require(self.max_features_per_class >= self.n_clusters, "max_features_per_class",
                     f"at least {self.step}.n_clusters={self.n_clusters}")
        for name in ("kmeans_tolerance", "kmeans_total_shift"):
            self.require(getattr(self, name) >= 0, name, "at least 0")
        self.require(self.prototype_images is None or self.prototype_images >= 1, "prototype_images", "null or at least 1")
        self.require(0 <= self.prototype_seed < 2**32, "prototype_seed", "from 0 to 2^32 - 1")


def saved(settings: Settings) -> list[str]:
    return [folder for folder in MAPS if folder != FG_ONLY or settings.save_fg_maps]


def lists(setup: Setup) -> Lists:
    prototypes = () if setup.settings.prototypes else setup.ids(setup.dataset.lists["train"], "prototype_split")
    return {"ids": setup.read_ids(), "prototypes": prototypes}


def identity(setup: Setup) -> dict[str, Any]:
    found = facts(setup, "precision", *["cam"] if after_lpcam(setup.methods, AMN in setup.sources) else [])
    if AMN not in setup.sources and not setup.methods["classifier"].has_taps:
        del found[setup.name]["taps"]   # it has no effect
    if not (file := setup.settings.prototypes):
        return found | facts(setup, "seed") | {setup.name: found[setup.name]}
    own = {key: value for key, value in found[setup.name].items() if key not in CLUSTERING}
    return {**found, setup.name: {**own, "prototypes": digest_of_imported(file, f"{setup.name}.prototypes={file}")}}


def check(setup: Setup) -> None:
    from wsss.classifiers.classifier import prototype_weights

    settings, network = setup.settings, _planned(setup)
    if AMN not in setup.sources:
        prototype_weights(network, setup.name, settings.taps.value)   # refuses a head that has none
    require_package("kmeans_pytorch", settings.kmeans_backend is KMeansBackend.kmeans_pytorch, f"{setup.name}.kmeans_backend")
    if settings.prototypes:
        where = f"{setup.name}.prototypes={settings.prototypes}"
        check_imported(settings.prototypes, where, len(setup.dataset.classes), network.backbone.feature_channels)


def _planned(setup: Setup) -> Any:
    """The classifier or AMN, on torch's meta device."""
    from steps.runtime.needs import Estimate

    return Estimate(setup).amn() if AMN in setup.sources else Estimate(setup).classifier()


def prepare(context: StepContext) -> None:
    """Make the prototypes, which all images need."""
    _prepare(context)


def _prepare(context: StepContext) -> tuple[Classifier | AMNNetwork, Maps, Prototypes]:
    """The classifier or AMN, the CAMs, the prototypes."""
    from steps.parts.prototypes import make_prototypes
    from steps.runtime.amn import load_amn
    from steps.runtime.networks import load_classifier
    from wsss.classifiers.classifier import prototype_weights

    cams, taps = Maps(context.input("cams")), context.settings.taps.value
    if context.reads(AMN):
        amn = load_amn(context, AMN)
        return amn, cams, make_prototypes(context, amn, cams, amn.class_weights(taps))
    classifier = load_classifier(context)
    return classifier, cams, make_prototypes(context, classifier, cams, prototype_weights(classifier, context.name, taps))


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate, maps_on_disk, weights

    estimate, settings, kinds = Estimate(setup), setup.settings, 1 + setup.settings.save_fg_maps
    scales = getattr(setup.config, setup.sources["cams"][0].step).scales
    network, images, sources = _planned(setup), estimate.images("ids"), estimate.images("prototypes")
    stride = network.backbone.feature_stride
    shown = Counter(index for present in sources.present for index in present)
    share = max(shown.values(), default=0) / max(1, len(sources.present))   # of the commonest class
    cells, limit = share * sources.total(sources.cells(stride)), settings.max_features_per_class
    rows = min(cells, 2.5 * limit) + limit * (cells > limit)      # both samples with spare rows, and a copy to shorten one
    rows += 2 * min(cells, 128 * settings.n_clusters)             # k-means++ samples this many, and normalises them
    if settings.kmeans_backend is KMeansBackend.kmeans_pytorch:
        rows += min(cells, limit) * (settings.n_clusters + 2)     # its N x K x D array, and two copies of the features
    feature = 4 * network.backbone.feature_channels               # float32
    near = 9 * (4 * max(map(len, setup.lists["prototypes"][:1]), default=0) + 8)   # ids (UCS-4) and places of nearest features
    centers = 2 * settings.n_clusters * len(shown) * (feature + 14 + near)
    clustered = feature * min(cells, limit) if estimate.on_gpu else 0   # a copy of the sample
    after = after_lpcam(setup.methods, AMN in setup.sources)
    forward = network.backbone if after is None else as_forward(after, network)
    return estimate.finish(maps_on_disk(images, stride, scales, kinds) + centers, weights(network) + clustered,
                           max(estimate.forwards(network, forward, images, max(scales)),
                               estimate.forwards(network, network.backbone, sources) + estimate.on_host(feature * rows)), kinds)


def run(context: StepContext) -> dict[str, Any]:
    import torch

    from steps.runtime.amn import labelled_features
    from wsss.cams.cam import multi_scale_features
    from wsss.cams.lpcam import lpcam_maps

    after = after_lpcam(context.methods, context.reads(AMN))
    network, cams, prototypes = _prepare(context)
    relu_without_background = context.settings.relu_without_background

    def make(image_id: str) -> Made:
        image, facts = context.dataset.image(image_id), cams.facts(image_id)
        features_of = labelled_features(context, network, image_id)
        vectors = prototypes.of(facts["classes"])
        with torch.inference_mode():
            scales = multi_scale_features(features_of, image, facts["scales"], context.runtime.device,
                                          network.backbone.normalisation)
            pairs = [lpcam_maps(features, vectors.foreground, vectors.background, relu_without_background=relu_without_background,
                                mean=prototypes.mean) for features in scales]
        if after is not None:
            pairs = refined(context, after, network, image, facts, pairs)
        kinds = {f"{FG_ONLY}/": [fg for fg, _ in pairs], "": [full for _, full in pairs]}
        if not context.settings.save_fg_maps:
            del kinds[f"{FG_ONLY}/"]
        contents = {f"{kind}{image_id}.npy": encode_array(_pack(maps, vectors.has_foreground, cams, image_id))
                    for kind, maps in kinds.items()}
        return contents, {**{name: facts[name] for name in ("height", "width", "classes", "scales")},
                          "grids": _grids(kinds[""]), "pad": network.backbone.feature_stride,
                          **({} if after is None else {"merge": after.merge})}

    for_each_image(context, make)
    return {"prototypes": prototypes.summary()}


def reader(folder: Path, n_classes: int) -> Callable[[str], None]:
    import torch

    from steps.parts.prototypes import Prototypes

    Prototypes(folder / FILE, n_classes, torch.device("cpu"))
    maps, fg_maps = Maps(folder), Maps(folder, FG_ONLY)

    def read(image_id: str) -> None:
        maps.packed(image_id)
        if f"{FG_ONLY}/{image_id}.npy" in maps.facts(image_id)["files"]:
            fg_maps.packed(image_id)
    return read


def _pack(maps: list[torch.Tensor], has_foreground: torch.Tensor, cams: Maps, image_id: str) -> np.ndarray:
    """Pack the maps of an image; a class without any foreground prototype keeps its CAM."""
    from wsss.cams.maps import pack

    packed = pack(maps)[0].cpu().numpy()
    missing = ~has_foreground.cpu().numpy()
    if missing.any():
        packed[missing] = _packed_on(_grids(maps), cams, image_id)[missing]
    return packed


def _grids(maps: list[torch.Tensor]) -> list[list[int]]:
    return [list(each.shape[1:]) for each in maps]


def _packed_on(grids: list[list[int]], cams: Maps, image_id: str) -> np.ndarray:
    """The CAMs of an image (K, P) on other `grids`: as stored if these are theirs, else the full map resized to each."""
    from wsss.cams.maps import at_size, pack

    if cams.facts(image_id)["grids"] == grids:
        return cams.packed(image_id)
    full = cams.at(image_id, "full")
    return pack([at_size(full, grid) for grid in grids])[0].numpy()


def advice(change: Change) -> list[Advice]:
    setting, key = change.outcome.setting, change.name
    if setting(f"{key}.prototypes") is not None:   # imported prototypes are not clustered
        return []
    found: list[Advice] = []
    if change.cause != "shrink" and setting(f"{key}.cam_threshold", 0.1) < 0.4:
        found.append((f"{key}.cam_threshold", 0.4, "fewer cells count as foreground"))
    if change.cause != "spread" and setting(f"{key}.fg_threshold", 0.9) > 0.7:
        found.append((f"{key}.fg_threshold", 0.7, "more foreground prototypes are kept"))
    if change.cause == "shrink" and setting(f"{key}.n_clusters", 12) < 20:
        found.append((f"{key}.n_clusters", 20, "more prototypes, of smaller parts"))
    return found


def remarks(name: str, outcome: Outcome) -> list[Remark]:
    """A remark if LPCAM is below LPCAM-F: the background prototypes remove parts of the objects."""
    without = f"{name}_{FG_ONLY}"
    points, key = outcome.points(name, without), f"{name}.background_high"
    if points is None or points >= -MARGIN:
        return []
    less: list[Advice] = [(key, 0.5, "fewer background prototypes")] if outcome.setting(key, 0.9) > 0.5 else []
    text = (f"{MAPS['']} is {-points:.1f} points below {MAPS[FG_ONLY]}, the same maps without background prototypes, which "
            "remove parts of the objects.")
    return [Remark(name, "background", text, without, points, less)]


def shown(context: StepContext) -> Iterator[Column | Sheet]:
    """The maps, and the prototypes of each class."""
    yield from map_columns(context, MAPS)
    yield from prototype_sheets(context.folder / FILE, len(context.dataset.classes))
