"""Which images a class's prototypes come from, and that the settings of the clustering reach it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.config import compose, typed
from pipeline.report.prototypes import WINDOW, _crops
from steps.parts import prototypes
from steps.parts.prototypes import prototype_images
from steps.runtime.context import StepContext
from wsss.cams.clustering import kmeans
from wsss.seeding import generator

CLASSES = ("a", "b", "c")


@pytest.fixture
def dataset():
    draws = np.random.default_rng(0)
    labels = {f"{number:012d}": tuple(np.flatnonzero(draws.random(2) < 0.4).tolist()) for number in range(60)}   # none shows c
    return SimpleNamespace(classes=CLASSES, labels=labels, image=lambda image_id: image_id)


def context(dataset, *overrides: str, ids=None) -> StepContext:
    settings = typed(compose(["data=folder", "data.root=x", *overrides])).make_lpcam
    return StepContext("make_lpcam", settings, dataset, {"prototypes": tuple(ids or dataset.labels)}, folder=None)


def test_all_images_of_the_list_that_show_the_class(dataset):
    images = prototype_images(context(dataset, ids=list(dataset.labels)[10:40]))
    for index in range(3):
        assert images[index] == [i for i in list(dataset.labels)[10:40] if index in dataset.labels[i]]


def test_the_official_draw_for_coco(dataset):
    """`step_coco/make_lpcam.py`, split_100: the same images, whatever the order of our list."""
    ids = sorted(dataset.labels)
    matrix = np.array([[index in dataset.labels[i] for index in range(3)] for i in ids])
    np.random.seed(666)
    official = [np.random.choice(np.nonzero(matrix[:, index])[0], 100) for index in range(2)]
    drawn = prototype_images(context(dataset, "make_lpcam.prototype_images=100", ids=ids[::-1]))
    assert [[ids[i] for i in images] for images in official] == drawn[:2]
    assert drawn[2] == []   # official: crash
    other = prototype_images(context(dataset, "make_lpcam.prototype_images=100", "make_lpcam.prototype_seed=1"))
    assert other[0] != drawn[0]


class Cams:
    """The maps of images of 32 x 32 pixels, of which the left half shows the class."""

    def facts(self, image_id):
        return {"height": 32, "width": 32}

    def classes(self, image_id):
        return [0]

    def at(self, image_id, size, device):
        return torch.tensor([[[1.0, 0.0]]]).repeat_interleave(16, dim=2).expand(1, 32, 32)


def test_an_image_drawn_twice_counts_twice(dataset, monkeypatch):
    # every feature says which image it is of
    monkeypatch.setattr(prototypes, "_features", lambda context, network, image_id: torch.full((4, 2, 2), float(image_id)))
    classifier = SimpleNamespace(backbone=SimpleNamespace(feature_channels=4, feature_stride=16))
    samples = prototypes._gather(context(dataset), 0, ["7", "5", "7"], classifier, Cams())
    for sample in samples:
        features, cells = sample.result()
        assert sorted(features[:, 0].tolist()) == [5, 5, 7, 7, 7, 7]
        assert all(["7", "5", "7"][number] == str(int(value)) for number, value in zip(cells[:, 0], features[:, 0], strict=True))
        assert (cells[:, 3:] == 2).all()   # the grid


@pytest.mark.parametrize(("height", "width"), [(240, 350), (70, 90)])
def test_the_nearest_features_are_found_again_in_the_image(height, width):
    """Whatever the stride: a grid of 12 x 14 cells covers the image."""
    cells = np.array([[1, 0, 0, 12, 14], [0, 11, 13, 12, 14], [1, 5, 6, 12, 14]])
    result = SimpleNamespace(centers=torch.zeros(1, 4), nearest=lambda cluster, number: torch.tensor([2, 1]))
    near_id, near_place = prototypes._nearest(result, cells, ["x", "y"])
    assert near_id[0, :3].tolist() == ["y", "x", ""]
    assert near_place.shape == (1, prototypes.NEAREST, 2)
    np.testing.assert_allclose(near_place[0, :2], [[5.5 / 12, 6.5 / 14], [11.5 / 12, 13.5 / 14]], rtol=1e-6)

    rows, columns = np.mgrid[:height, :width].astype(np.uint16)
    image = np.stack([rows, columns, rows], axis=2)
    [patch] = _crops(SimpleNamespace(image=lambda image_id: image), [(0, "y", tuple(near_place[0, 0].tolist()))])[0]
    assert patch.shape == (WINDOW, WINDOW, 3)
    assert patch[WINDOW // 2, WINDOW // 2].tolist()[:2] == [round(height * 5.5 / 12), round(width * 6.5 / 14)]


@pytest.mark.parametrize(("overrides", "expected"), [
    ([], {"init": "k-means++", "tolerance": 1e-3, "total_shift": 0.0, "max_iterations": 100}),
    (["recipe=official"], {"init": "random", "tolerance": 0.0, "total_shift": 5 ** 0.5, "max_iterations": 300}),
    (["make_lpcam.kmeans_init=random"], {"init": "random", "tolerance": 1e-3, "total_shift": 0.0, "max_iterations": 100}),
])
def test_the_settings_reach_the_clustering(dataset, overrides, expected):
    settings = context(dataset, "make_lpcam.n_clusters=5", *overrides).settings
    features = torch.from_numpy(np.random.default_rng(1).random((300, 8), np.float32))
    ours = prototypes._cluster(features, settings, generator(0, "test"))
    plain = kmeans(features, 5, generator=generator(0, "test"), **expected)
    assert torch.equal(ours.centers, plain.centers) and ours.n_iterations == plain.n_iterations
    others = kmeans(features, 5, generator=generator(0, "test"), **{**expected, "init": "random" if not overrides else "k-means++"})
    assert not torch.equal(ours.centers, others.centers)
