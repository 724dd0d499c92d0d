"""`Setup`, what is known about a step before any work. The planner makes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steps.runtime.context import Source, methods_of
from wsss.data.dataset import MAX_CLASSES, Dataset
from wsss.data.ids import union
from wsss.errors import ConfigError


@dataclass(frozen=True)
class Setup:
    """What is known about a step before any work."""

    name: str                                # of its row
    settings: Any
    config: Any                              # of the run: seed, precision, ...
    dataset: Dataset
    sources: Mapping[str, tuple[Source, ...]]   # by role: the steps that it may read (`identity`, `check`: reads)
    wanted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)   # for `lists`: reader -> the ids that it reads
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)    # the lists, except for `lists`
    fetch: bool = True                       # pretrained weights may be downloaded
    device: str = "cpu"                      # for `needs`: the kind of device that computes, "cpu" or "cuda"

    @property
    def methods(self) -> dict[str, Any]:
        """The method of each family that the step uses."""
        return methods_of(self.config, self.name)

    @property
    def further(self) -> Mapping[str, Any]:
        """The further methods of the step, by name (`steps.runtime.context.further`)."""
        return self.config.further.get(self.name, {})

    @property
    def seeds(self) -> str:
        """The kind of the maps that the role "seeds" reads."""
        return self.sources["seeds"][0].step

    def ids(self, default: Sequence[str] = (), key: str = "split") -> tuple[str, ...]:
        """The ids of the list that the setting `key` names; `default` if it is null."""
        split = getattr(self.settings, key)
        return tuple(default) if split is None else self.dataset.list_ids(split)

    def read_ids(self) -> tuple[str, ...]:
        """The ids of the list `split`; if it is null, what the readers need, or train without readers."""
        return self.ids(union(self.wanted.values()) or self.dataset.lists["train"])

    def ids_with_masks(self) -> tuple[str, ...]:
        """The list to score, train by default; () if that has no masks. Raises ConfigError if an explicit list lacks some."""
        ids = self.ids(self.dataset.lists["train"])
        if self.dataset.has_masks(ids):
            return ids
        if self.settings.split is not None:
            raise ConfigError(f"{self.name}.split={self.settings.split!r} is to be scored, but not all of its {len(ids)} images "
                              f"have masks in {self.dataset.root}. Add the masks or choose another list")
        return ()

    def require_mask_values(self) -> None:
        """Raise ConfigError if the classes have no room in the 8-bit masks that the step writes."""
        if len(self.dataset.classes) > MAX_CLASSES:
            raise ConfigError(f"{self.name} writes 8-bit masks, which have values for {MAX_CLASSES} classes, but data set "
                              f"{self.dataset.name} has {len(self.dataset.classes)}. Leave it and the steps that read its masks "
                              "out of steps=[...]: maps are made and their boxes are scored without masks")

    def refuse_choosing_on_scored(self, scores: str, scored: Sequence[str], val: Sequence[str], key: str) -> None:
        """Raise ConfigError if the step `scores` scores images on which the setting `key` is chosen."""
        if both := set(scored) & set(val):
            raise ConfigError(f"{scores}.split contains {len(both)} images of the list val, on which {self.name}.{key} is chosen"
                              f". Set {self.name}.{key} to numbers, or score a list without them")


def val_with_masks(dataset: Dataset) -> tuple[str, ...]:
    """The val ids if all of them have masks, else ()."""
    val = dataset.lists["val"]
    return val if val and dataset.has_masks(val) else ()
