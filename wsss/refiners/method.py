"""The base of the methods that refine seed maps to pseudo masks, and what they read of an image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from wsss.errors import ArgumentError, ConfigError
from wsss.families import BaseMethod

if TYPE_CHECKING:   # a plan reads the settings of a method and waits for no torch
    from torch import Tensor

    from wsss.data.dataset import Dataset

Advice = tuple[str, Any, str]   # a key of the configuration, the value to try, and what it does


class SeedImage:
    """An image as a refiner reads it, with K present classes. Everything is on one device and made once, when it is asked for.

    id: of the image, for a refiner with files of its own.
    """

    def __init__(self, seeds: Callable[[], Tensor], edge: Callable[[int], Tensor], image: Callable[[], Tensor], id: str = "",
                 features: Callable[[], Tensor] | None = None, saliency: Callable[[], Tensor] | None = None):
        self._seeds, self._edge, self._image, self.id, self._features, self._saliency = seeds, edge, image, id, features, saliency
        self.edges: dict[int, Tensor] = {}   # the edge maps made so far, by `pad_to`

    @cached_property
    def seeds(self) -> Tensor:
        """The seed maps (K, h, w) float32 in [0, 1], at stride 4 of the networks' input. K may be 0."""
        return self._seeds()

    @cached_property
    def image(self) -> Tensor:
        """The image (H, W, 3) uint8 in the size of the networks' input."""
        return self._image()

    @cached_property
    def features(self) -> Tensor:
        """The features (D, h, w) float32 of AffinityNet, at stride 8; only for a method that reads "affinity"."""
        if self._features is None:
            raise ArgumentError(f"there are no features of AffinityNet of {self.id!r}: pass `features` to SeedImage")
        return self._features()

    @cached_property
    def saliency(self) -> Tensor:
        """The saliency map (H, W) uint8 in the size of the networks' input, of a data set that has them (`check`)."""
        if self._saliency is None:
            raise ArgumentError(f"there is no saliency map of {self.id!r}: pass `saliency` to SeedImage")
        return self._saliency()

    def edge(self, pad_to: int | None = None) -> Tensor:
        """The edge map (h, w) float32 in [0, 1] of IRN, at stride 4; only for a method that reads "irn".

        `pad_to`: IRN's input is padded at the right and bottom to sides of at least this many pixels.
        """
        key = pad_to or 0
        if key not in self.edges:
            self.edges[key] = self._edge(key)
        return self.edges[key]


@dataclass
class RefinerMethod(BaseMethod):
    """A way from seed maps to pseudo masks: seed maps -> `maps` -> background threshold -> `scores` -> argmax.

    A method supplies `maps`, `scores` or both; without them only the threshold is applied. `maps` is computed once to score all
    thresholds on val, `scores` for each threshold that is tried, so only a few are. Several threads may use one object at once,
    so it keeps nothing between calls.
    """

    title: ClassVar[str] = ""          # of its masks, in a headline; by default the name of the module
    subject: ClassVar[str] = ""        # the beginning of a sentence about them; by default "TITLE is"
    maps_title: ClassVar[str] = ""     # of what `maps` returns, in the report; by default the name of the module
    reads: ClassVar[str] = ""          # the network that it needs, by its role: "irn" for `SeedImage.edge`, "affinity" for
    #                                    `SeedImage.features`; "" none
    divided: ClassVar[bool] = True     # whether its maps are divided by their common maximum
    threshold: ClassVar[float | None] = None   # in place of the background threshold, which is then neither set nor chosen

    def __post_init__(self) -> None:
        """A method checks its settings here with `require`, and calls this function of its base."""

    def require(self, condition: bool, key: str, expected: str) -> None:
        """Raise ConfigError with the key, its value and what is `expected`, if `condition` is false."""
        if not condition:
            raise ConfigError(f"refiner.{key}={getattr(self, key)!r} is not possible: expected {expected}")

    def maps(self, image: SeedImage) -> Tensor:
        """The maps before the background threshold.

        Returns:
            (K, h, w) float32 at stride 4, not negative. They are divided by their common maximum, enlarged, and divided again; if
            they are not `divided`, they are in [0, 1] and only enlarged.
        """
        return image.seeds

    def scores(self, image: SeedImage, scores: Tensor) -> Tensor:
        """The scores after the background threshold, of several maps or thresholds at once.

        Args:
            image: with K >= 1 classes.
            scores: (n, K + 1, H, W) float32 in [0, 1], in the size of the networks' input: the threshold, and the maps.

        Returns:
            (n, K + 1, H, W), whose argmax is the mask. Each of the n depends on the same one of the argument only.
        """
        return scores

    def candidates(self, has_val: bool) -> Mapping[str, RefinerMethod]:
        """By name, the refiner to use, or several, of which the best on val masks is used.

        `has_val`: whether there are val masks; without them exactly one.
        """
        return {self.method: self}

    def check(self, dataset: Dataset, ids: Collection[str]) -> None:
        """Raise WsssError before any work if what the method needs for the images `ids` is missing, such as files of its own."""

    def files(self, dataset: Dataset) -> dict[str, str]:
        """The settings that name files of its own, each with the digest of these files, by which they count."""
        return {}

    def memory(self, labellings: int, gpu: bool) -> tuple[float, float] | None:
        """Bytes of memory per pixel, and per pixel and class, while `maps` or `scores` of `labellings` thresholds is computed on
        the CPU or a GPU, without IRN. None: unknown."""
        return None

    @classmethod
    def advice(cls, cause: str | None, setting: Callable[..., Any]) -> list[Advice]:
        """What to try if the masks are worse than the seed maps, most promising first.

        `cause`: "spread" (more background covered), "shrink" (more of the objects missed) or None. `setting(key)`: the value in
        use, None if it is not known.
        """
        return [("refiner", "none", "the seed maps at their threshold, unrefined")]

    @classmethod
    def named(cls) -> tuple[str, str]:
        """The title of its masks, and the beginning of a sentence about them."""
        title = cls.title or _module(cls)
        return title, cls.subject or f"{title} is"

    @property
    def after_threshold(self) -> bool:
        """Whether it refines after the background threshold: it has a function `scores`."""
        return self._owner("scores") is not RefinerMethod

    @property
    def maps_name(self) -> str:
        """The name of the module with its function `maps`; "" if it has none."""
        owner = self._owner("maps")
        return "" if owner is RefinerMethod else _module(owner)

    @property
    def maps_key(self) -> str:
        """Equal for methods that make equal maps: with the same function `maps`, and equal settings of its class."""
        return self._key("maps")

    @property
    def scores_key(self) -> str:
        """As `maps_key`, for `scores`."""
        return self._key("scores")

    def _owner(self, function: str) -> type[RefinerMethod]:
        """The class whose `function` it has."""
        return next(each for each in type(self).__mro__ if function in vars(each))

    def _key(self, function: str) -> str:
        owner = self._owner(function)
        return f"{owner.__module__} {[(item.name, getattr(self, item.name)) for item in fields(owner) if item.init]}"


def _module(method: type[RefinerMethod]) -> str:
    return method.__module__.rpartition(".")[2]
