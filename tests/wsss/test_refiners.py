"""The base of the refiners: what is derived from the functions that a class supplies, and the refiners that are compared on val."""

from dataclasses import dataclass, fields, replace

import pytest
import torch

from pipeline.config import compose, typed
from wsss.errors import ConfigError
from wsss.families import found
from wsss.refiners.best_on_val import BestOnVal
from wsss.refiners.crf import CRF
from wsss.refiners.method import RefinerMethod, SeedImage
from wsss.refiners.none import NoRefinement
from wsss.refiners.walk import Walk
from wsss.refiners.walk_crf import WalkCRF


@pytest.fixture(scope="module")
def best() -> BestOnVal:
    return typed(compose(["refiner=best_on_val"])).refiner


@dataclass
class Doubled(Walk):
    """Another function `maps`."""

    def maps(self, image):
        return 2 * super().maps(image)


@pytest.mark.parametrize(("method", "maps_name", "after_threshold", "reads"), [
    (NoRefinement, "", False, ""), (CRF, "", True, ""), (Walk, "walk", False, "irn"), (WalkCRF, "walk", True, "irn"),
    (Doubled, "test_refiners", False, "irn")])
def test_what_a_refiner_is_follows_from_its_functions(best, method, maps_name, after_threshold, reads):
    made = method(**{item.name: getattr(best, item.name) for item in fields(method) if item.init})
    assert (made.maps_name, made.after_threshold, made.reads) == (maps_name, after_threshold, reads)


def test_the_best_on_val_tries_all_four_with_its_settings_and_is_the_crf_without_val(best):
    tried = replace(best, beta=3.0, sharpness=4.0).candidates(True)
    assert [type(each) for each in tried.values()] == [NoRefinement, CRF, Walk, WalkCRF]
    assert all(name == each.method for name, each in tried.items())
    assert tried["walk"].beta == tried["walk_crf"].beta == 3.0 and tried["crf"].sharpness == tried["walk_crf"].sharpness == 4.0
    assert list(best.candidates(False)) == ["crf"] and tried["walk"].candidates(False) == {"walk": tried["walk"]}


def test_refiners_share_what_has_equal_settings(best):
    none, crf, walk, walk_crf = best.candidates(True).values()
    assert none.maps_key == crf.maps_key != walk.maps_key == walk_crf.maps_key
    assert none.scores_key == walk.scores_key != crf.scores_key == walk_crf.scores_key
    other = replace(walk_crf, beta=3.0)
    assert other.maps_key != walk.maps_key and other.scores_key == crf.scores_key
    other = replace(walk_crf, sharpness=3.0)
    assert other.maps_key == walk.maps_key and other.scores_key != crf.scores_key
    assert Doubled(**{item.name: getattr(walk, item.name) for item in fields(walk) if item.init}).maps_key != walk.maps_key


def test_an_image_makes_everything_once():
    made = []

    def make(name, value):
        return lambda *pad: made.append((name, *pad)) or value
    image = SeedImage(make("seeds", torch.ones(2, 3, 4)), make("edge", torch.zeros(3, 4)), make("image", torch.zeros(9, 9, 3)))
    for _ in range(2):
        assert image.seeds.shape == (2, 3, 4) and image.image.shape == (9, 9, 3)
        assert image.edge().shape == image.edge(512).shape == (3, 4)
    assert made == [("seeds",), ("image",), ("edge", 0), ("edge", 512)] and list(image.edges) == [0, 512]


def test_the_base_changes_nothing_and_says_what_it_is():
    image, scores = SeedImage(lambda: torch.ones(1, 2, 3), None, None), torch.rand(2, 3, 4, 5)
    assert torch.equal(NoRefinement().maps(image), torch.ones(1, 2, 3)) and NoRefinement().scores(image, scores) is scores
    assert RefinerMethod().memory(1, gpu=False) is None
    names = {name: method.named() for name, method in found("refiner").items()}
    assert names["walk"] == ("walk", "the random walk is") and names["walk_crf"] == ("walk and CRF", "the random walk and CRF are")
    assert Doubled.named()[0] == "walk" and RefinerMethod.named() == ("method", "method is")


def test_the_walk_of_a_power_is_the_walk_of_the_maps_to_that_power():
    method = typed(compose(["refiner=walk_power", "refiner.exp_times=2"])).refiner
    torch.manual_seed(0)
    seeds, edge = torch.rand(2, 9, 11), torch.rand(9, 11)

    def image(maps):
        return SeedImage(lambda: maps, lambda pad_to: edge, lambda: None)
    walk = Walk(**{item.name: getattr(method, item.name) for item in fields(Walk) if item.init})
    assert method.power == 1.3   # official AMN
    assert torch.equal(method.maps(image(seeds)), walk.maps(image(seeds ** 1.3)))
    assert replace(method, power=1.5).maps_key != method.maps_key
    with pytest.raises(ConfigError, match="refiner.power=0.0 is not possible: expected above 0"):
        replace(method, power=0.0)
