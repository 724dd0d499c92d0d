"""Import maps from files instead of computing them, so that the later steps refine the maps of any method.

Reads `ID.npy` of a folder: dictionaries as in the official cam_mask and lpcam_mask (docs/official.md). Writes `ID.npy`, float16
(K, P): the maps at both official sizes, (H, W) and (ceil(H / 4), ceil(W / 4)), one after the other.
"""

from dataclasses import dataclass
from typing import Any

from steps.parts.official import OfficialMaps
from steps.runtime.context import StepContext
from steps.step import IMAGES, Needs, Setup, StepSettings, facts
from wsss.errors import ConfigError
from wsss.files import user_path

VERSION = 2
KIND = IMAGES
MAPS = {"": "imported maps"}
FILES = OfficialMaps("")   # directly in the folder
SHOWN = 3                  # missing files
reader = FILES.reader


@dataclass
class Settings(StepSettings):
    """`imported.`: the values are in `conf/recipe/`."""

    maps: str | None             # the folder
    split: str | None            # null: what the later steps read


def identity(setup: Setup) -> dict[str, Any]:
    """The files count, not the name of their folder."""
    own, maps = facts(setup)[setup.name], setup.settings.maps
    folder = user_path(maps) if maps else None
    return {setup.name: {**own, "maps": folder and FILES.digest(folder, FILES.ids(folder, setup.dataset))}}


def check(setup: Setup) -> None:
    maps, ids = setup.settings.maps, setup.lists["ids"]
    setup.settings.require(maps is not None, "maps", f"a folder with a file ID.npy for each image: {setup.name}.maps=DIR")
    there = set(FILES.ids(user_path(maps), setup.dataset))
    if missing := [f"{image_id}.npy" for image_id in ids if image_id not in there]:
        raise ConfigError(f"{setup.name}.maps={maps} lacks the files of {len(missing)} of the {len(ids)} images that are needed "
                          f"({', '.join(missing[:SHOWN])}{', ...' if len(missing) > SHOWN else ''}). Add them, or choose shorter "
                          "lists for the steps that read the maps")


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate

    estimate = Estimate(setup)
    images = estimate.images("ids")
    pixels = images.classes * images.pixels
    return estimate.finish(images.total(2 * (1 + 1 / 16) * pixels + 128),
                           passing=estimate.on_host(6 * float(pixels.max(initial=0))), files=1)


def run(context: StepContext) -> dict[str, Any]:
    return FILES.convert(context, user_path(context.settings.maps))
