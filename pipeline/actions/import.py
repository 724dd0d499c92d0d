"""Take masks that were corrected in an annotation tool, `import_format=cvat` (or another) `import_from=DIR`, back into a run.

They are checked and written as `ID.png` into `corrections/DIGEST/` of the run, named after their content. A run with
`data.corrections` set to that folder uses them. Masks that are as the run made and exported them are left out.
From Python: `getattr(pipeline, "import")()`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.actions.export import FormatSettings, mask_maker
from pipeline.order import BY_NAME
from pipeline.runfolder.folder import RunFolder
from steps.runtime.artifacts import Labels
from steps.runtime.context import require
from steps.step import TRAINING
from wsss import annotations
from wsss.annotations import Options, Sheet
from wsss.data.dataset import Dataset
from wsss.data.findings import Finding, report_table
from wsss.data.images import encode_mask, mask_classes
from wsss.data.messages import format_size, refuse
from wsss.errors import ConfigError, WsssError
from wsss.files import user_path, write_bytes, writing_folder

if TYPE_CHECKING:
    from pipeline.actions._corrections import Masks

FOLDER = "corrections"


@dataclass
class Settings(FormatSettings):
    import_format: str | None    # the name of a file in wsss/annotations/
    import_from: str | None      # what the tool has exported: a folder or a zip file
    import_unchanged: bool       # also masks that are as the run made them: they were looked at and are right


def check(config: Any) -> None:
    known = annotations.names()
    require(config.import_format in known, "import_format", config.import_format, f"one of {', '.join(known)}")
    require(config.import_from is not None, "import_from", None, "what the annotation tool has exported: import_from=DIR")
    require(config.export_tolerance >= 0, "export_tolerance", config.export_tolerance, "0 or more pixels")


def do(pipeline: Any) -> tuple[Path, list[Finding]]:
    """Write the corrected masks; return their folder and the lines of a report. Raises WsssError; then nothing is written."""
    from pipeline.actions import _corrections

    config, step = pipeline.config, mask_maker(pipeline.config, "import")
    with pipeline.reading([step]), _corrections.opened(user_path(config.import_from)) as root:
        pipeline.console.start("import")
        dataset, read = pipeline.dataset, _corrections.READERS[config.import_format]
        found = read(root, dataset)
        new = _checked(dataset, config.import_from, found, pipeline.progress("import"))
        given = [] if config.import_unchanged else list(_given(config, dataset, pipeline.folder, step, tuple(new), read))
        same = [i for i, mask in new.items() if any(i in masks and np.array_equal(mask, masks[i]()) for masks in given)]
        corrected = {image_id: mask for image_id, mask in new.items() if image_id not in same}
        if not corrected:
            raise ConfigError(f"import_from={config.import_from}: all {len(new)} masks are as the run made them, so none is a "
                              "correction. Correct some, or set import_unchanged=true if they were looked at and are right")
        before = {i: dataset.correction(i) for i in dataset.corrections if i not in new or i in corrected}
        path = _write(pipeline.folder, {**before, **corrected})
    return path, _findings(config, dataset, corrected, before, len(same))


def run(pipeline: Any) -> int:
    path, findings = do(pipeline)
    words = [word for word in pipeline.command.split(" ") if not word.startswith("data.corrections=")]
    pipeline.console.result(report_table(findings))
    pipeline.console.result(f"The corrected masks are in {path}/. To train with them: {' '.join(words)} data.corrections={path} "
                            "replace=true")
    return 0


def _checked(dataset: Dataset, source: str, found: Masks, progress: Callable[[int, int, str], None]) -> dict[str, np.ndarray]:
    """The masks, of the size of their images and with values of the data set. Raises DataError that lists all others."""
    masks, problems = {}, []
    for number, (image_id, draw) in enumerate(found.items(), start=1):
        try:
            mask = draw()
            if mask.shape != (expected := dataset.size(image_id)):
                problems.append(f"the mask of {image_id} is {format_size(mask.shape)} but its image is {format_size(expected)} "
                                "as shown; annotate the image as it is")
            mask_classes(mask, len(dataset.classes), Path(source, image_id))
            masks[image_id] = mask
        except WsssError as error:
            problems.append(str(error))
        progress(number, len(found), "masks")
    refuse(f"masks of {source}", problems)
    return masks


def _given(config: Any, dataset: Dataset, folder: RunFolder, step: str, ids: Sequence[str], read: Callable) -> Iterator[Masks]:
    """The masks of the run as a tool that changes nothing returns them: as masks and as polygons of `export_tolerance`."""
    made, form = Labels(folder.result(step), len(dataset.classes)), annotations.load(config.import_format)
    known = [image_id for image_id in ids if image_id in dataset.corrections or image_id in made]
    if not known:
        return

    def sheets() -> Iterator[Sheet]:
        for image_id in known:
            mask = dataset.correction(image_id) if image_id in dataset.corrections else made(image_id, dataset.size(image_id))
            yield Sheet(image_id, f"{image_id}.jpg", mask)
    for shapes in form.SHAPES:
        options = Options(dataset.classes, config.export_tolerance if shapes == annotations.POLYGONS else None)
        with TemporaryDirectory() as place:
            form.write(Path(place), sheets(), options)
            yield read(Path(place), dataset)


def _write(folder: RunFolder, masks: dict[str, np.ndarray]) -> Path:
    """Write masks into the folder that is named after their content, if it does not exist yet."""
    files = {f"{image_id}.png": encode_mask(masks[image_id]) for image_id in sorted(masks)}
    digest = hashlib.blake2b(digest_size=6)
    for name, content in files.items():
        digest.update(f"{name}\t{len(content)}\n".encode() + content)
    path = folder.path / FOLDER / digest.hexdigest()
    if not path.exists():
        with writing_folder(path) as temporary:
            for name, content in files.items():
                write_bytes(temporary / name, content)
    return path


def _findings(config: Any, dataset: Dataset, corrected: dict[str, np.ndarray], before: dict[str, np.ndarray],
              same: int) -> list[Finding]:
    trained_on = {image_id for name in config.steps if BY_NAME[name].KIND == TRAINING
                  for image_id in dataset.list_ids(getattr(config, name).split or "train")}
    unknown = [image_id for image_id, mask in corrected.items()
               if set(np.unique(mask).tolist()) - {0, 255} - {index + 1 for index in dataset.labels[image_id]}]
    findings = [Finding("corrected masks", len(corrected)),
                Finding("corrected before and kept", len(before.keys() - corrected.keys())),
                Finding("left out: as the run made them", same)]
    if others := [image_id for image_id in corrected if image_id not in trained_on]:
        findings.append(Finding("not used: in no training list", len(others), None, f"for example {others[0]}"))
    if unknown:
        findings.append(Finding("with a class that the label lacks", len(unknown), None,
                                f"for example {unknown[0]}: the classifier learns it only if the label has it too"))
    return findings
