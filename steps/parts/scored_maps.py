"""The maps that a step scores."""

from steps.runtime.artifacts import Maps
from steps.runtime.context import StepContext


def read_maps(context: StepContext) -> dict[str, Maps]:
    """The maps of the finished steps of the role "maps" by kind; without the kinds that a step was told not to save."""
    found = {kind: Maps(source.folder, folder) for source in context.inputs.get("maps", ())
             for kind, folder in source.kinds.items()}
    return {kind: maps for kind, maps in found.items() if not maps.kind or maps}
