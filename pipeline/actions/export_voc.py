"""Write images and pseudo masks into `export_to=DIR`, in the layout of PASCAL VOC.

    EXPORT_TO/
      JPEGImages/ID.jpg             copies of the images, so that a tool may edit them
      SegmentationClassAug/ID.png   palette PNGs: pseudo masks of the training list, ground truth of val
      ImageSets/Segmentation/       train_aug.txt or train.txt, after the training list, and val.txt: one id per line
      classes.txt                   one class per line: line i is mask value i; 0 is background, 255 is ignored

Many tools read only `.jpg` and ignore the EXIF orientation, so every other image is converted to an upright JPEG.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.actions._export import Settings, export_target, finished_masks
from pipeline.order import BY_NAME, sources
from pipeline.runfolder.folder import RunFolder
from steps.runtime.artifacts import Labels
from steps.runtime.setup import val_with_masks
from steps.step import TRAINING
from wsss.data.dataset import Dataset
from wsss.data.findings import Finding, report_table
from wsss.data.images import encode_jpeg, encode_mask, is_upright_jpeg
from wsss.errors import ConfigError
from wsss.files import write_bytes

__all__ = ["Settings", "do", "run"]
IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"


def do(pipeline: Any) -> list[Finding]:
    """Write the folder `export_to` (see `export_voc`). Raises WsssError."""
    with pipeline.reading([mask_step(pipeline.config)]):
        pipeline.console.start("export_voc")
        command = pipeline.command.replace(" force=true", "")   # force applies to the export folder, not to the steps
        return export_voc(pipeline.config, pipeline.dataset, pipeline.folder, command, pipeline.console.progress)


def run(pipeline: Any) -> int:
    pipeline.console.result(report_table(do(pipeline)))
    return 0


def mask_step(config: Any, action: str = "export_voc") -> str:
    """The step whose masks are exported: the last of the experiment that makes masks, or of those that a network is trained on if
    there are any. Raises ConfigError if no step makes masks."""
    if not (makers := [name for name in config.steps if BY_NAME[name].MASKS]):
        known = " or ".join(row.name for row in BY_NAME.values() if row.MASKS)
        raise ConfigError(f"action={action} needs pseudo masks, but no step of this experiment makes any "
                          f"({', '.join(config.steps)}). Add {known} to steps")
    trainings = (name for name in config.steps if BY_NAME[name].KIND == TRAINING)
    trained_on = {source for name in trainings for read in sources(config, name).values() for source in read}
    return ([name for name in makers if name in trained_on] or makers)[-1]


def training_list(config: Any) -> str:
    """The list of the first training of the experiment."""
    trainings = (name for name in config.steps if BY_NAME[name].KIND == TRAINING)
    return next((getattr(config, name).split for name in trainings), None) or "train"


def export_voc(config: Any, dataset: Dataset, folder: RunFolder, command: str,
               progress: Callable[[str, int, int, str], None]) -> list[Finding]:
    """Write the folder `config.export_to`; return the lines of a report. `command` runs the pipeline and is used in messages.

    The training list is that of the first training. All files are checked before the first is written: each id of the list has a
    finished pseudo mask of this configuration, val has ground truth and shares no image with the list, and every mask has the
    size of its image and only values 0..C and 255. Files that already exist with the same content are skipped, so an
    interrupted call can be repeated.

    Raises
    ------
    ConfigError
        if `export_to` is not set or is the data set or the run, if the masks do not cover the list (names the command
        that makes the missing ones), or if different files exist (`force=true` replaces them).
    ArtifactError, DataError
        if a mask is damaged or does not match its image.
    """
    target = export_target(config, dataset, folder, "export_voc")
    split, step = training_list(config), mask_step(config)
    train, val = dataset.list_ids(split), val_with_masks(dataset)
    read = _pseudo_masks(config, dataset, folder, command, step, split, train)
    name = split if split in dataset.lists else "train"
    files = dict(_files(dataset, read, {name: train, "val": val}))
    missing, different = [], []
    for number, (file, source) in enumerate(files.items(), start=1):
        content = source()   # raises if it does not match
        if not (target / file).exists():
            missing.append(file)
        elif not (target / file).is_file() or (target / file).read_bytes() != content:
            different.append(file)
        progress("checked", number, len(files), "files")
    if different and not config.force:
        raise ConfigError(f"{target} holds {len(different)} files that differ from what would be written, for example "
                          f"{different[0]}. Set force=true to replace them, or choose another folder with export_to=DIR")
    for number, file in enumerate(missing + different, start=1):
        write_bytes(target / file, files[file]())
        progress("written", number, len(missing + different), "files")
    copied = sum(source.func is Path.read_bytes for source in files.values())
    return [Finding(f"pseudo masks, list {name}", len(train), len(train)),
            Finding("ground truth, list val", len(val), None, "" if val else "no val.txt: not all of val has masks"),
            Finding("images copied", copied),
            Finding("images written as upright JPEG", len(train) + len(val) - copied),
            Finding(f"files in {target}", len(files), None, f"{len(missing):,} new, {len(different):,} replaced")]


def _pseudo_masks(config: Any, dataset: Dataset, folder: RunFolder, command: str, step: str, split: str,
                  train: tuple[str, ...]) -> Labels:
    """Raises ConfigError as `finished_masks`, or if the list overlaps val."""
    if both := set(train) & set(dataset.lists["val"]):
        raise ConfigError(f"{len(both)} ids of the training list {split} are in val, for example {min(both)!r}: their masks "
                          "cannot be pseudo masks and ground truth at once. Train on a list without them")
    return finished_masks(config, dataset, folder, command, step, split, train)


def _files(dataset: Dataset, read: Labels, lists: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, partial[bytes]]]:
    """The name of every file of the folder, with the function that makes its content."""
    for name, ids in lists.items():
        for image_id in ids:
            image = dataset.image_path(image_id)
            upright = is_upright_jpeg(image)
            yield f"{IMAGES}/{image_id}.jpg", partial(Path.read_bytes, image) if upright else partial(_as_jpeg, dataset, image_id)
            yield f"{MASKS}/{image_id}.png", partial(_truth if name == "val" else partial(_pseudo, read), dataset, image_id)
        if ids:
            yield f"{LISTS}/{name}.txt", partial(str.encode, "".join(f"{image_id}\n" for image_id in ids))
    yield "classes.txt", partial(str.encode, "".join(f"{class_name}\n" for class_name in dataset.classes))


def _pseudo(read: Callable, dataset: Dataset, image_id: str) -> bytes:
    return encode_mask(read(image_id, dataset.size(image_id)))


def _truth(dataset: Dataset, image_id: str) -> bytes:
    return encode_mask(dataset.mask(image_id))


def _as_jpeg(dataset: Dataset, image_id: str) -> bytes:
    return encode_jpeg(dataset.full_image(image_id))
