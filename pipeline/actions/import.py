"""Take masks that were corrected in an annotation tool, `import_format=cvat` (or another) `import_from=DIR`, back into a run.

They are checked and written as `ID.png` into `corrections/DIGEST/` of the run, named after their content. A run with
`data.corrections` set to that folder uses them. Masks that are as the run made and exported them are left out.
From Python: `getattr(pipeline, "import")()`.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

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
from wsss.data.images import decode_mask, encode_mask, mask_classes
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
        dataset, form = pipeline.dataset, config.import_format
        found = _corrections.READERS[form](root, dataset)
        new = _checked(dataset, config.import_from, found, pipeline.progress("import"))
        given = _corrections.GIVEN[form]
        same = set() if config.import_unchanged else _unchanged(config, dataset, pipeline.folder, step, new, given)
        corrected = {image_id: mask for image_id, mask in new.items() if image_id not in same}
        if not corrected:
            raise ConfigError(f"import_from={config.import_from}: all {len(new)} masks are as the run made them, so none is a "
                              "correction. Correct some, or set import_unchanged=true if they were looked at and are right")
        before = {image_id: encode_mask(dataset.correction(image_id)) for image_id in dataset.corrections}
        path = _write(pipeline.folder, {**before, **corrected})
    return path, _findings(config, dataset, corrected, len(same))


def run(pipeline: Any) -> int:
    path, findings = do(pipeline)
    words = [word for word in shlex.split(pipeline.command) if not word.startswith("data.corrections=")]
    command = shlex.join([*words, f"data.corrections={path}"])
    pipeline.console.result(report_table(findings))
    pipeline.console.result(f"The corrected masks are in {path}/. To use them in this run: {command} replace=true\n"
                            f"In another run, which keeps this one: name=NAME reuse_from=[{pipeline.folder.path.name}] in place "
                            "of replace=true")
    return 0


def _checked(dataset: Dataset, source: str, found: Masks, progress: Callable[[int, int, str], None]) -> dict[str, bytes]:
    """The masks as PNGs, of the size of their images and with values of the data set. Raises DataError that lists all others."""
    masks, problems = {}, []
    for number, (image_id, draw) in enumerate(found.items(), start=1):
        try:
            mask = draw()
            if mask.shape != (expected := dataset.size(image_id)):
                problems.append(f"the mask of {image_id} is {format_size(mask.shape)} but its image is {format_size(expected)} "
                                "as shown; annotate the image as it is")
            mask_classes(mask, len(dataset.classes), Path(source, image_id))
            masks[image_id] = encode_mask(mask)
        except WsssError as error:
            problems.append(str(error))
        progress(number, len(found), "masks")
    refuse(f"masks of {source}", problems)
    return masks


def _unchanged(config: Any, dataset: Dataset, folder: RunFolder, step: str, masks: Mapping[str, bytes],
               read: Callable[[Path, Dataset], Masks]) -> set[str]:
    """The ids whose masks are those of the run as a tool that changes nothing returns them: as masks, or as polygons of
    `export_tolerance`."""
    made, form = Labels(folder.result(step), len(dataset.classes)), annotations.load(config.import_format)
    known = [image_id for image_id in masks if image_id in dataset.corrections or image_id in made]
    same: set[str] = set()

    def sheets() -> Iterator[Sheet]:
        for image_id in known:
            mask = dataset.correction(image_id) if image_id in dataset.corrections else made(image_id, dataset.size(image_id))
            yield Sheet(image_id, f"{image_id}.jpg", mask)
    for shapes in form.SHAPES if known else ():
        options = Options(dataset.classes, config.export_tolerance if shapes == annotations.POLYGONS else None)
        with TemporaryDirectory() as place:
            form.write(Path(place), sheets(), options)
            same |= {image_id for image_id, draw in read(Path(place), dataset).items() if encode_mask(draw()) == masks[image_id]}
    return same


def _write(folder: RunFolder, masks: Mapping[str, bytes]) -> Path:
    """Write masks into the folder that is named after their content, if it does not exist yet."""
    digest = hashlib.blake2b(digest_size=6)
    for image_id in sorted(masks):
        digest.update(f"{image_id}\t{len(masks[image_id])}\n".encode() + masks[image_id])
    path = folder.path / FOLDER / digest.hexdigest()
    if not path.exists():
        with writing_folder(path) as temporary:
            for image_id, content in masks.items():
                write_bytes(temporary / f"{image_id}.png", content)
    return path


def _findings(config: Any, dataset: Dataset, corrected: Mapping[str, bytes], same: int) -> list[Finding]:
    trained_on = {image_id for name in config.steps if BY_NAME[name].KIND == TRAINING
                  for image_id in dataset.list_ids(getattr(config, name).split or "train")}
    classes = {i: mask_classes(decode_mask(mask, i), len(dataset.classes), Path(i)) for i, mask in corrected.items()}
    beyond = [image_id for image_id, present in classes.items() if set(present) - set(dataset.labels[image_id])]
    findings = [Finding("corrected masks", len(corrected)), Finding("left out: as the run made them", same)]
    if dataset.corrections:
        findings.append(Finding("corrected before and kept", len(dataset.corrections.keys() - corrected.keys())))
    if others := [image_id for image_id in corrected if image_id not in trained_on]:
        findings.append(Finding("not used: in no training list", len(others), None, f"for example {others[0]}"))
    if beyond:
        findings.append(Finding("with a class that the label lacks", len(beyond), None,
                                f"for example {beyond[0]}: the classifier learns it only if the label has it too"))
    return findings
