"""Numbers that are not finite are refused where they arise, by a message that says what to do; `tests/campaign/numbers.py` tries many."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline import Pipeline
from steps.runtime.context import StepContext
from steps.runtime.networks import require_finite_output
from steps.runtime.schedule import OptimizerName
from steps.train_irn import displacement_mean
from tests.networks import new_backbone, new_classifier
from tests.steps.test_training import train
from wsss.cams.amn import amn_maps
from wsss.cams.eigencam import EigenCAM
from wsss.cams.maps import pack
from wsss.data.images import IMAGENET
from wsss.errors import ArgumentError, ConfigError, DataError, WeightsError, WsssError
from wsss.map_files.reading import Activation, Values
from wsss.metrics.faithfulness import road_images
from wsss.networks.weights import fill
from wsss.refinement.masks import labels_of, mask_of
from wsss.segmenters.inference import probabilities

NAN, INF = torch.nan, torch.inf


class Scaled(torch.autograd.Function):
    """A number whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


@pytest.mark.parametrize(("steps", "stop"), [(2, ()), (99, (False, True))])
def test_weights_that_are_lost_in_a_step_are_told_before_they_are_saved_or_measured(tmp_path, steps, stop):
    """The loss, which is that of the weights before the step, is finite."""
    module, seen, asked = torch.nn.Linear(2, 1), [], iter(stop)

    def loss(x, total):
        value = module(x).mean()
        seen.append(float(value.detach()))
        return {"loss": Scaled.apply(value, INF if len(seen) == 2 else 1.0)}
    with pytest.raises(WsssError, match="weight is not finite after step 1, expected finite weights. Lower train_cam.lr; the last saved"):
        train(tmp_path, ids="ab", loss=loss, module=module, stop=lambda: next(asked, False), more=(lambda: pytest.fail("measured"),),
              schedule={"steps": 4, "checkpoint_steps": steps, "val_epochs": 2})
    assert len(seen) == 2 and np.isfinite(seen).all() and not list(tmp_path.iterdir())


def test_a_lost_state_of_the_optimiser_is_told_too(tmp_path):
    """The square of a gradient is infinite: Adam never moves this weight again."""
    module, settings = torch.nn.Linear(2, 1), SimpleNamespace(optimizer=OptimizerName.adam, lr=0.1, momentum=0.0, weight_decay=0.0)
    with pytest.raises(WsssError, match="the optimiser's exp_avg_sq of parameter 0 is not finite after step 0"):
        train(tmp_path, loss=lambda x, total: {"loss": 1e25 * module(x).mean()}, module=module, settings=settings)


def test_outputs_that_are_not_finite_are_told_with_their_image():
    context = SimpleNamespace(name="train_seg")
    assert require_finite_output(context, torch.ones(2), "a").sum() == 2
    with pytest.raises(WsssError, match="the network's output for a is not finite, expected finite numbers. Lower train_seg.lr"):
        require_finite_output(context, torch.tensor([0, NAN]), "a")


def test_a_displacement_that_is_not_finite_has_no_mean(tmp_path):
    class Net(SimpleNamespace):
        def __call__(self, x):
            return None, torch.full((1, 2, 4, 4), self.values.pop(0))
    dataset = SimpleNamespace(image=lambda image_id: np.zeros((40, 40, 3), np.uint8))
    context = StepContext("train_irn", SimpleNamespace(crop_size=32), dataset, {"ids": ("a", "b")}, tmp_path)
    net = {"eval": lambda: None, "set_displacement_mean": lambda mean: None, "backbone": SimpleNamespace(normalisation=IMAGENET)}
    assert displacement_mean(context, Net(values=[1.0, 2.0], **net)).tolist() == [1.5, 1.5]
    with pytest.raises(WsssError, match="the network's output for b is not finite, .*Lower train_irn.lr"):
        displacement_mean(context, Net(values=[1.0, NAN], **net))


@pytest.mark.parametrize(("words", "message"), [
    (["train_cam.lr=1e7"], "train_cam.lr=10000000.0 is not possible: expected above 0 and at most 1e"),
    (["train_irn.displacement_lr_mult=1e9"], "train_irn.displacement_lr_mult=.* at most 1e"),
    (["make_cam.epsilon=inf"], "make_cam.epsilon=inf is not possible: expected a finite number"),
    (["make_cam.scales=[1.0,nan]"], "make_cam.scales"), (["refiner=walk", "refiner.beta=inf"], "refiner.beta=inf"),
    (["imported.range=[0,1e39]"], "imported.range=.* both below 1e")])
def test_settings(words, message):
    with pytest.raises(ConfigError, match=message):
        Pipeline.compose("experiment=smoke", *words)


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_mask_is_not_made_of_scores_that_are_not_finite(value):
    scores = torch.rand(3, 4, 5)
    assert np.array_equal(mask_of(scores, [0, 1]), labels_of(scores, 0).byte().numpy())
    scores[1, 2, 3] = value
    with pytest.raises(ArgumentError, match="mask: the scores of the labels hold NaN or infinite values, .*check that the network"):
        mask_of(scores, [0, 1])


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_segmentation_is_not_made_of_logits_that_are_not_finite(value):
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ArgumentError, match="segment: the logits hold NaN or infinite values"):
        probabilities(lambda x: torch.zeros(len(x), 3, 2, 2).index_fill_(3, torch.tensor(1), value), image)


def test_maps_of_amn_and_eigencam():
    with pytest.raises(ArgumentError, match="amn_maps: the maps hold NaN"):
        amn_maps([torch.full((3, 2, 2), NAN)], [0], np.ones((4, 4), np.uint8), (4, 4))
    net = new_classifier(new_backbone("tiny"), 2).eval()
    for shape in ((2, 3, 5, 5), (2, 9, 2, 2)):   # fewer channels than cells, and more
        for value in (NAN, INF, 1e30):   # the products of 1e30 are infinite
            found = EigenCAM().maps(net, lambda x, shape=shape, value=value: torch.full(shape, value), torch.zeros(2, 3, 8, 8), [0])
            with pytest.raises(ArgumentError, match="pack: the activation maps hold NaN"):
                pack([found[0]])


def test_a_weights_file():
    module = torch.nn.Linear(2, 1)
    before = module.weight.clone()
    with pytest.raises(WeightsError, match="FILE: bias holds numbers that are not finite. Use a checkpoint of a finite training"):
        fill(module, {"weight": torch.zeros(1, 2), "bias": torch.tensor([NAN])}, "FILE")
    assert torch.equal(module.weight, before)


def test_numbers_in_map_files_that_no_float32_holds():
    with pytest.raises(DataError, match="NaN or infinite numbers"):
        Values(Activation.relu)(np.full((1, 2, 2), 1e300), None)   # without a warning of NumPy


def test_one_pixel_stays_where_all_would_be_removed():
    image = np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    assert np.array_equal(road_images(image, np.array([0]), [0.9], 0.0, np.random.default_rng(0))[0], image)
