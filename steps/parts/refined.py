"""What the report shows of the refining of seed maps: the refined maps, and those before the background threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from steps.parts.pieces import Adjustable, Column
from steps.parts.refining import Refining, recorded_refiner
from steps.parts.thresholds import THRESHOLD, read_chosen
from steps.runtime.artifacts import Maps, read_array
from steps.runtime.context import StepContext
from steps.runtime.networks import WEIGHTS
from steps.runtime.store import Store
from wsss.cams.maps import at_size
from wsss.refiners.method import RefinerMethod


class _Shown:
    """Returns the edge map (h, w) and the refined maps (K, h, w) of an image, float32, each None if there is none."""

    def __init__(self, context: StepContext, method: RefinerMethod):
        self.context, self.method, self._kept = context, method, Store(context.folder)
        readable = context.reads("seeds") and _readable(context, method)
        self._maps = Maps(context.input("seeds")) if readable else None
        self.ids = context.ids if readable else self._kept.index
        self._refining: Refining | None = None
        self._last: tuple[str, dict[str, np.ndarray]] = "", {}   # two columns read it

    def __call__(self, name: str, image_id: str) -> np.ndarray | None:
        if self._last[0] != image_id:
            self._last = image_id, self._make(image_id)
        return self._last[1].get(name)

    def _make(self, image_id: str) -> dict[str, np.ndarray]:
        names = (self.method.maps_name, *["edge"] * (self.method.reads == "irn"))
        kept = {name: file for name in names if (file := self._kept.file(image_id, f"{name}/{image_id}.npy")).exists()}
        if len(kept) == len(names):
            return {name: read_array(file, self.context.name).astype(np.float32) for name, file in kept.items()}
        if self._maps is None or image_id not in self._maps.index:
            return {}
        if self._refining is None:
            self._refining = Refining(self.context, [self.method])
        made = self._refining.made(self._refining.image(image_id), self.method)
        return {name: array.cpu().numpy() for name, array in made.items()}


def _readable(context: StepContext, method: RefinerMethod) -> bool:
    """Whether the network that a method reads is there, if it reads one."""
    return not method.reads or context.reads(method.reads) and (context.input(method.reads) / WEIGHTS).exists()


def refined_columns(context: StepContext) -> Iterator[Column]:
    """The edge map and the refined maps: read if `save_soft` kept them, else computed, if the method or one of those it tries
    refines maps."""
    for method in context.methods["refiner"].candidates(True).values():
        if method.maps_name:
            shown = _Shown(context, method)
            if method.reads == "irn":
                yield Column("edge map", "map", shown.ids, partial(shown, "edge"))
            yield Column(method.maps_title or method.maps_name, "maps", shown.ids, partial(shown, method.maps_name))
            return


def adjustable_threshold(context: StepContext, title: str, setting: str) -> Iterator[Adjustable]:
    """The maps of the refiner of finished masks before the background threshold: the seed maps, or what it makes of them."""
    path = context.folder / THRESHOLD
    chosen = read_chosen(path) if path.exists() else {}
    if chosen.get("threshold") is None or not context.reads("seeds"):   # None: imported masks
        return
    method = recorded_refiner(context, chosen)
    if method.threshold is not None or method.maps_name and not _readable(context, method):
        return
    refining = Refining(context, [method])

    def read(image_id: str, size: Sequence[int]) -> tuple[Tensor, list[int]]:
        refined = refining.refined(refining.image(image_id), method)
        full = refining.in_size(image_id, method, refined, context.dataset.size(image_id))
        return at_size(full, size), refining.maps.classes(image_id)
    yield Adjustable(title, refining.maps.index, read, {setting: chosen["threshold"]},
                     f"the second part of refiner={chosen['refiner']}" if method.after_threshold else "")
