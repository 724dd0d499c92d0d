"""List labels that a classifier contradicts which did not train on the image: two trainings on half of the images each.

    RUN/check_labels/
      labels.csv          the images, the most contradicted label first: what to look at in the image
      check_labels.json   what this depends on
      half_0, half_1      the trainings, until both are finished: the same command continues them

The settings are those of the run's finished classifier. An image that it trained on is judged by the classifier of the other
half, any other image of train and val by that of the run. action=report shows the first images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steps.runtime.context import require

if TYPE_CHECKING:
    from pipeline.actions._labels import Doubt


def check(config: Any) -> None:
    require(config.shard is None, "shard", config.shard, "no value with action=check_labels: one process trains")


def do(pipeline: Any) -> list[Doubt]:
    """The images of train and val, those with the most contradicted labels first. Also writes the table.

    Raises
    ------
    ConfigError
        if there is no finished classifier, or it trained on fewer than four images.
    Stopped
        after SIGINT or SIGTERM; the same call continues.
    """
    from pipeline.actions._labels import check_labels

    pipeline.require_run()
    return check_labels(pipeline)


def run(pipeline: Any) -> int:
    from pipeline.actions._labels import FOLDER, SHOWN, TABLE, lines

    found = do(pipeline)
    for line in lines(found[:SHOWN]):
        pipeline.console.result(line)
    pipeline.console.result(f"All {len(found)} images are in {pipeline.folder.path / FOLDER / TABLE}; action=report shows the "
                            "first ones")
    return 0
