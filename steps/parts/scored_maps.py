"""The maps that a step scores, and how those that can be added to are checked."""

from collections.abc import Callable
from pathlib import Path

from steps.runtime.artifacts import Maps
from steps.runtime.context import StepContext


def read_maps(context: StepContext) -> dict[str, Maps]:
    """The maps of the finished steps of the role "maps" by kind; without the kinds that a step was told not to save."""
    found = {kind: Maps(source.folder, folder) for source in context.inputs.get("maps", ())
             for kind, folder in source.kinds.items()}
    return {kind: maps for kind, maps in found.items() if not maps.kind or maps}


def map_reader(folder: Path, n_classes: int) -> Callable[[str], None]:
    """The `reader` of a step that makes maps: of an image its main maps and those of the kinds that were added."""
    maps = Maps(folder)

    def read(image_id: str) -> None:
        maps.packed(image_id)
        for name in maps.facts(image_id).get("added", {}):
            maps.of_kind(name).packed(image_id)
    return read
