"""The base of the methods that make activation maps, and the loop over the scales of an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wsss.data.images import IMAGENET, Normalisation, normalise, resize_image, scaled_size
from wsss.errors import ArgumentError, ConfigError
from wsss.families import BaseMethod

if TYPE_CHECKING:   # a plan reads the settings of a method and waits for no torch
    import torch
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier

Features = Callable[["Tensor"], "Tensor"]   # normalised images (B, 3, H, W) -> features (B, D, h, w) in float32


@dataclass
class CamMethod(BaseMethod, ABC):
    """A method that makes activation maps. Several threads may use one object at once, so it keeps nothing between calls."""

    title: ClassVar[str] = ""          # of the maps, in tables and in the report; by default the name of the module
    range: ClassVar[tuple[float, float]] = (0, 1)   # of a class's maps divided by their greatest magnitude: here after a ReLU
    gradients: ClassVar[bool] = False  # True: `maps` runs in float32 on the weights as trained, with gradients enabled; no
    #                                    parameter requires one, so the method starts the graph at an activation
    exact_grids: ClassVar[bool] = False   # True: the grids of its maps cover the image exactly. False: they cover it padded to
    #                                       whole cells, as the features of a convolutional network (`wsss.cams.maps.rebuild`)

    merge: ClassVar[str] = "sum"       # how the maps at all scales become that of the image (`wsss.cams.maps.rebuild`)
    after_lpcam: ClassVar[bool] = False   # True: `refined` changes the maps of LPCAM

    @classmethod
    def titled(cls, preset: str) -> str:
        """The title of the maps with the settings of a file of `conf/cam/`, which is named if it is not the method's own."""
        module = cls.__module__.rpartition(".")[2]
        title = cls.title or module
        return title if preset == module else f"{title} ({preset})"

    def require(self, condition: bool, key: str, expected: str) -> None:
        """Raise ConfigError with the key, its value and what is `expected`, if `condition` is false."""
        if not condition:
            raise ConfigError(f"cam.{key}={getattr(self, key)!r} is not possible: expected {expected}")

    @abstractmethod
    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """The maps of an image at one scale, before any normalisation.

        Args:
            net: the classifier, in evaluation mode.
            features_of: the function from images to `net.features`, computed in the run's precision.
            pair: (2, 3, H, W), the normalised image and its mirror image, on the device of `net`.
            classes: the present ones, 0-based, K of them; K may be 0.

        Returns:
            (2, K, h, w) float32; the second is the map of the mirror image, not mirrored back.
        """

    def check(self, net: Classifier) -> None:
        """Check before any work that the method can make maps of a network; `net` may be on torch's meta device.

        Raises ConfigError if it cannot.
        """

    def scale_weight(self, pair: Tensor) -> float:
        """The factor of the maps of `pair` in the sum over the scales of an image."""
        return 1.0

    def refined(self, net: Classifier, pair: Tensor, maps: Tensor, classes: Sequence[int]) -> Tensor:
        """What becomes of the maps of LPCAM at one scale, by default what they are; a method that changes them says so by
        `after_lpcam`.

        Args:
            net, pair: as for `maps`, but called without gradients in the precision of make_lpcam.
            maps: (n, h, w) float32, of an image and its mirror image together, in the frame of the image.
            classes: of each of the n maps; one may occur twice.

        Returns:
            (n, h, w) float32.
        """
        return maps


@dataclass
class StageMethod(CamMethod):
    """A method whose map of a class is a function of the activations A of one stage and of the gradient of the class's logit
    (before any softmax) with respect to A. It supplies `map_of`.

    stage: index of the backbone's stages, fine to coarse from 0; negative ones count from the end, -1: the features that are
    pooled.
    """

    stage: int

    gradients: ClassVar[bool] = True

    @staticmethod
    @abstractmethod
    def map_of(activation: Tensor, gradient: Tensor) -> Tensor:
        """The map (B, h, w) of activations (B, D, h, w) and of the gradient of a class with respect to them, (B, D, h, w)."""

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, on the grid of the stage; not negative. One forward pass and K backward passes, in float32;
        `features_of` is not used. Raises ConfigError if the backbone has no such stage."""
        from wsss.cams.gradients import stage_maps

        return stage_maps(net, pair, classes, [self.stage], self.map_of)[0]

    def check(self, net: Classifier) -> None:
        """Raise ConfigError if the backbone does not have this stage."""
        from wsss.cams.gradients import stage_numbers

        stage_numbers(net, [self.stage])


def image_pairs(image: np.ndarray, scales: Sequence[float], device: torch.device | str = "cpu",
                normalisation: Normalisation = IMAGENET) -> Iterator[Tensor]:
    """An image (H, W, 3) uint8 and its mirror image at each scale, (2, 3, h, w) normalised float32 on `device`.

    Each scale is the original resized by PIL's bicubic filter and then normalised (IRN `voc12/dataloader.py`,
    VOC12ClassificationDatasetMSF).
    """
    import torch

    for scale in scales:
        resized = normalise(resize_image(image, scaled_size(image.shape[:2], scale)), device, normalisation)  # (3, h, w)
        yield torch.stack([resized, resized.flip(-1)])


def flip_sum(maps: Tensor) -> Tensor:
    """Sum the maps (2, n, h, w) of an image and of its mirror image, mirrored back: (n, h, w)."""
    return maps[0] + maps[1].flip(-1)


def multi_scale_maps(method: CamMethod, net: Classifier, features_of: Features, image: np.ndarray, classes: Sequence[int],
                     scales: Sequence[float], device: torch.device | str = "cpu",
                     normalisation: Normalisation = IMAGENET) -> list[Tensor]:
    """The maps that a method makes of one image at every scale: of the image and its mirror image, summed.

    Args:
        method, net, features_of, classes: as for `CamMethod.maps`.
        image: (H, W, 3) uint8.
        scales: relative to the original size.
        device: of `net`.
        normalisation: of the network's input.

    Returns:
        Per scale (K, h_s, w_s) float32, without a graph, to be summed.

    Raises:
        ArgumentError: what the method returned has another shape.
    """
    import torch

    def summed(pair: Tensor) -> Tensor:
        maps = method.maps(net, features_of, pair, classes).detach()
        if maps.ndim != 4 or maps.shape[:2] != (2, len(classes)):
            raise ArgumentError(f"{method}: maps returned {tuple(maps.shape)}, expected (2, {len(classes)}, h, w): the maps of "
                                f"{len(classes)} classes of an image and of its mirror image")
        return flip_sum(maps) * method.scale_weight(pair)

    with torch.inference_mode(not method.gradients), torch.set_grad_enabled(method.gradients):
        return [summed(pair) for pair in image_pairs(image, scales, device, normalisation)]
