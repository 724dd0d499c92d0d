"""Write images and pseudo masks into `export_to=DIR`, in the layout of PASCAL VOC.

    EXPORT_TO/
      JPEGImages/ID.jpg             copies of the images: a tool may edit them in place
      SegmentationClassAug/ID.png   palette PNGs: pseudo masks of the training list, ground truth of val
      ImageSets/Segmentation/       train_aug.txt or train.txt, as the training list is called, and val.txt: an id a line
      classes.txt                   a class a line: line i is mask value i; 0 is background, 255 is not to be counted

Tools look for `.jpg` alone and turn no picture by its EXIF orientation: an image that is no upright JPEG is written as one.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.actions._export import Settings, export_target
from pipeline.plan.lists import masks_to_choose_by
from pipeline.plan.plan import survey
from pipeline.runfolder.folder import RunFolder
from steps.runtime.artifacts import Labels
from steps.runtime.journal import unfinished
from wsss.data.dataset import Dataset
from wsss.data.findings import Finding, report_table
from wsss.data.images import encode_jpeg, encode_mask, is_upright_jpeg
from wsss.errors import ConfigError
from wsss.files import write_bytes

__all__ = ["Settings", "do", "run"]
STEP = "make_sem_seg_labels"
IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"


def do(pipeline: Any) -> list[Finding]:
    """Write the folder `export_to` (`export_voc`). Raises WsssError."""
    with pipeline.reading([STEP]):
        pipeline.console.start("export_voc")
        command = pipeline.command.replace(" force=true", "")   # meant for the folder, not for the steps
        return export_voc(pipeline.config, pipeline.dataset, pipeline.folder, command, pipeline.console.progress)


def run(pipeline: Any) -> int:
    pipeline.console.result(report_table(do(pipeline)))
    return 0


def export_voc(config: Any, dataset: Dataset, folder: RunFolder, command: str,
               progress: Callable[[str, int, int, str], None]) -> list[Finding]:
    """Write the folder `config.export_to`; what it holds, as lines of a report. `command` is the one that runs the pipeline.

    The training list is what train_cam learned from. Every file is checked before the first is written: each id of the list has a
    finished pseudo mask of this configuration, val has its ground truth and shares no image with the list, and every mask has
    the size of its image and no value but 0..C and 255. A file that is there as it would be written is left alone, so an
    interrupted call goes on.

    Raises
    ------
    ConfigError
        for an `export_to` that is missing or already means something, a list that is not covered (with the command that makes the
        others), or files that are there and different (`force=true` replaces them).
    ArtifactError, DataError
        for a mask that is damaged or does not fit.
    """
    target = export_target(config, dataset, folder, "export_voc")
    split = config.train_cam.split or "train"
    train, val = dataset.list_ids(split), masks_to_choose_by(dataset)
    _check_masks(config, dataset, folder, command, split, train)
    name = split if split in dataset.lists else "train"
    files = dict(_files(dataset, folder.result(STEP), {name: train, "val": val}))
    missing, different = [], []
    for number, (file, source) in enumerate(files.items(), start=1):
        content = source()   # refuses what does not fit
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


def _check_masks(config: Any, dataset: Dataset, folder: RunFolder, command: str, split: str, train: tuple[str, ...]) -> None:
    """Refuse what would hand over another image's mask, a stale one, or none."""
    if both := set(train) & set(dataset.lists["val"]):
        raise ConfigError(f"{len(both)} ids of the training list {split} are in val, for example {min(both)!r}: their masks "
                          "cannot be pseudo masks and ground truth at once. Train on a list without them")
    planned = {planned.name: planned for planned in survey(config, dataset, folder)}.get(STEP)
    manifest = folder.manifest(STEP)
    if planned is None or manifest is None or manifest["fingerprint"] != planned.fingerprint:
        why = planned.why if planned and planned.why else "the step is not finished"
        raise ConfigError(f"{folder.path} has no pseudo masks of this configuration ({why}). Make them first: {command}")
    lacking = unfinished(folder.result(STEP), train, dataset)
    if lacking:
        raise ConfigError(f"the pseudo masks cover {len(train) - len(lacking)} of the {len(train)} ids of the training list "
                          f"{split} (first missing: {next(iter(lacking))!r}). Make the others first: {command} "
                          f"{STEP}.split={split}")


def _files(dataset: Dataset, masks: Path, lists: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, partial[bytes]]]:
    """Every file of the folder by its name, with what makes its content."""
    read = Labels(masks, len(dataset.classes))
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
