"""Write the archive for the evaluation server of PASCAL VOC 2012 into `export_to=DIR`: segmentations of its test images.

    EXPORT_TO/results.tgz                                   to be uploaded as comp6; it holds
      results/VOC2012/Segmentation/comp6_test_cls/ID.png    palette PNGs, 8 bit, 0..20

The images are those of the list test, ImageSets/Segmentation/test.txt, or of the list or file `infer_seg.split`.
"""

import gzip
import io
import tarfile
from collections.abc import Callable
from typing import Any

from pipeline.actions._export import Settings, export_target, finished_masks
from pipeline.order import BY_NAME, segmenting
from pipeline.runfolder.folder import RunFolder
from wsss.data.dataset import Dataset
from wsss.data.findings import Finding, report_table
from wsss.data.images import encode_mask
from wsss.data.voc import TEST, VOC_CLASSES
from wsss.errors import ConfigError, DataError
from wsss.files import write_bytes
from wsss.palette import IGNORE

__all__ = ["Settings", "do", "run"]
ARCHIVE, FOLDER = "results.tgz", "results/VOC2012/Segmentation/comp6_test_cls"


def do(pipeline: Any) -> list[Finding]:
    """Write the archive (see `export_voc_test`). Raises WsssError."""
    with pipeline.reading([segmenting_step(pipeline.config)]):
        pipeline.console.start("export_voc_test")
        command = pipeline.command.replace(" force=true", "")   # force applies to the archive, not to the steps
        return export_voc_test(pipeline.config, pipeline.dataset, pipeline.folder, command, pipeline.console.progress)


def run(pipeline: Any) -> int:
    pipeline.console.result(report_table(do(pipeline)))
    return 0


def segmenting_step(config: Any) -> str:
    """The step whose masks are exported: the first of the experiment that segments by a trained network. Raises ConfigError if
    there is none."""
    if not (makers := segmenting(config.steps)):
        raise ConfigError("action=export_voc_test needs masks of images without labels, but no step of this experiment makes any "
                          f"({', '.join(config.steps)}). Add {segmenting(BY_NAME)[0]} to steps, or use an experiment "
                          "with a segmentation network")
    return makers[0]


def export_voc_test(config: Any, dataset: Dataset, folder: RunFolder, command: str,
                    progress: Callable[[str, int, int, str], None]) -> list[Finding]:
    """Write `results.tgz` into the folder `config.export_to`; return the lines of a report. All masks are checked before.

    Raises
    ------
    ConfigError
        if the data set is not PASCAL VOC, the segmentations do not cover the list, or another archive exists (`force=true`
        replaces it).
    ArtifactError, DataError
        if a mask is damaged, has another size than its image or holds 255, which the server does not accept.
    """
    target = export_target(config, dataset, folder, "export_voc_test") / ARCHIVE
    if dataset.classes != VOC_CLASSES:
        raise ConfigError(f"action=export_voc_test is for the 20 classes of PASCAL VOC, but data={dataset.name} has others. Use "
                          "data=voc12")
    step = segmenting_step(config)
    split = getattr(config, step).split or TEST
    ids = dataset.list_ids(split)
    read = finished_masks(config, dataset, folder, command, step, split, ids)
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for number, image_id in enumerate(ids, start=1):
            mask = read(image_id, dataset.size(image_id))
            if (mask == IGNORE).any():
                raise DataError(f"the mask of {image_id!r} holds {IGNORE}, expected 0 to {len(VOC_CLASSES)}: the server knows no "
                                f"ignored pixels. Delete it and run {step} again")
            encoded = encode_mask(mask)
            entry = tarfile.TarInfo(f"{FOLDER}/{image_id}.png")   # of no user and time, so that equal masks give equal bytes
            entry.size = len(encoded)
            archive.addfile(entry, io.BytesIO(encoded))
            progress("checked", number, len(ids), "masks")
    known = target.read_bytes() if target.exists() else None
    if known not in (None, content.getvalue()) and not config.force:
        raise ConfigError(f"{target} exists and holds other masks. Set force=true to replace it, or choose another folder with "
                          "export_to=DIR")
    if known != content.getvalue():
        write_bytes(target, content.getvalue())
    return [Finding(f"segmentations, list {split}", len(ids), len(ids)),
            Finding(f"archive {target}", 1, None, "was there" if known == content.getvalue() else "written")]
