"""Every parser of files that the project has, with small valid files to begin from. `tests/campaign/fuzz.py` feeds them.

`tests/test_campaign.py` compares `PARSERS` with the modules that read files, so that none is left out.
"""

import base64
import io
import json
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss.palette import VOC_PALETTE

SIZE, CLASSES, IDS = (6, 8), ("cat", "dog"), ("a", "b", "c")


@dataclass(frozen=True)
class Parser:
    """A parser. `form`: how its files are changed (`mutate.FORMS`). `seeds`: contents of valid files. `reads`: the modules whose
    reading it tries. `open(folder)` prepares a folder, and returns a function that reads one content."""

    name: str
    form: str
    seeds: Callable[[], list[bytes]]
    open: Callable[[Path], Callable[[bytes], object]]
    reads: tuple[str, ...]
    slow: int = 1   # how many times fewer inputs a trial has


def encoded(array: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, form, **options)
    return content.getvalue()


@cache
def picture(form: str = "PNG", **options: Any) -> bytes:
    return encoded(np.arange(144, dtype=np.uint8).reshape(*SIZE, 3), form, **options)


@cache
def numbers(mode: str = "P") -> bytes:
    array = np.zeros(SIZE, np.uint8)
    array[2:, 3:], array[0, 0] = 1, 255
    if mode == "I;16":
        return encoded(array.astype(np.uint16))
    image, content = Image.fromarray(array), io.BytesIO()
    if mode == "P":
        image.putpalette(VOC_PALETTE.tobytes())
    image.save(content, "PNG")
    return content.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name.replace("__", "/"), body)
    return content.getvalue()


def tarred(mode: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=f"w:{mode}") as archive:
        for name, kind in (("a/x.png", tarfile.REGTYPE), ("a/y.png", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, 3
            archive.addfile(info, io.BytesIO(b"abc"))
    return content.getvalue()


def texts(*files: str) -> Callable[[], list[bytes]]:
    return lambda: [file.encode() for file in files]


def jsons(*values: Any) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value).encode() for value in values]


def images(folder: Path) -> dict[str, str]:
    """Three images in a folder: id -> file."""
    (folder / "images").mkdir(exist_ok=True)
    for image_id in IDS:
        (folder / f"images/{image_id}.png").write_bytes(picture())
    return {image_id: f"images/{image_id}.png" for image_id in IDS}


def into(name: str, read: Callable[[Path, Path], object], prepare: Callable[[Path], object] = images) -> Callable[[Path], Callable[[bytes], object]]:
    """`open` of a parser that reads the file `name`: `read(folder, path)`."""
    def open(folder: Path) -> Callable[[bytes], object]:
        prepare(folder)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)

        def call(content: bytes) -> object:
            path.parent.mkdir(exist_ok=True)   # a reader may have removed it
            path.write_bytes(content)
            return read(folder, path)
        return call
    return open


# Folders of a user.

FILES = {image_id: f"images/{image_id}.png" for image_id in IDS}


def drawn(found: Any) -> None:
    """Draw the shapes of the images that exist, as a run does after the check of their sizes."""
    for drawing in found.drawings.values() if found else ():
        if drawing.size == SIZE:
            drawing.mask()


def a_table(folder: Path, path: Path) -> None:
    from wsss.data.folder.table import read_table

    for classes in (None, CLASSES):
        read_table(path, classes, FILES)


def a_folder(folder: Path, path: Path) -> None:
    from wsss.data.folder import open_folder

    dataset = open_folder(folder)
    for image_id in dataset.lists["all"]:
        dataset.image(image_id)
        if dataset.mask_files.get(image_id):
            dataset.mask(image_id)
    dataset.digest_of_masks([i for i in dataset.lists["all"] if i in dataset.mask_files])
    if dataset.has_boxes(dataset.lists["all"]):
        dataset.boxes(dataset.lists["all"][0])


def with_labels(folder: Path) -> None:
    images(folder)
    (folder / "labels.csv").write_text("name,classes\na,cat\nb,dog\nc,cat;dog\n")
    (folder / "classes.txt").write_text("cat\ndog\n")


def with_masks(folder: Path) -> None:
    with_labels(folder)
    for kind in ("masks", "instances"):
        (folder / kind).mkdir(exist_ok=True)
        for image_id in IDS:
            (folder / f"{kind}/{image_id}.png").write_bytes(numbers())


COCO = {"images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}, {"id": 2, "file_name": "images/b.png", "height": 6, "width": 8}, {"id": 3, "file_name": "c.png", "height": 6, "width": 8}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "segmentation": [[1, 1, 4, 1, 4, 4]]},
                        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [0, 0, 2, 2], "segmentation": {"size": [6, 8], "counts": [10, 5, 33]}},
                        {"id": 3, "image_id": 3, "category_id": 7, "bbox": [0, 0, 2, 2], "iscrowd": 1, "segmentation": {"size": [6, 8], "counts": ":5Q1"}}]}
LABELME = {"imagePath": "a.png", "imageHeight": 6, "imageWidth": 8, "flags": {"cat": True}, "shapes": [
    {"label": "dog", "shape_type": "polygon", "points": [[1, 1], [5, 1], [5, 4]]},
    {"label": "cat", "shape_type": "mask", "points": [[1, 1], [4, 3]], "mask": base64.b64encode(encoded(np.ones((3, 4), bool))).decode()}]}
VOC = """<annotation><filename>a.png</filename><size><width>8</width><height>6</height><depth>3</depth></size><object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>3</ymax></bndbox></object><object><name>dog</name><difficult>1</difficult><bndbox><xmin>2.5</xmin><ymin>1</ymin><xmax>8</xmax><ymax>6</ymax></bndbox></object></annotation>"""
CVAT = """<annotations><meta><task><labels><label><name>cat</name><type>any</type></label><label><name>dog</name></label></labels></task></meta>
<image id="0" name="some/a.png" width="8" height="6"><polygon label="cat" points="1,1;6,1;6,5" z_order="1"/><mask label="dog" rle="1, 2, 1" left="2" top="2" width="2" height="2"/>
<ellipse label="cat" cx="4" cy="3" rx="2" ry="1" rotation="30"/><box label="dog" xtl="1" ytl="1" xbr="4" ybr="4"/><tag label="cat"/><polyline label="cat" points="1,1;2,2"/></image></annotations>"""
TASKS = [{"id": 1, "data": {"image": "/data/upload/1/12345678-a.png", "image_id": "a"}, "annotations": [{"was_cancelled": False, "result": [
    {"type": "polygonlabels", "original_width": 8, "original_height": 6, "value": {"points": [[10, 10], [60, 10], [60, 70]], "closed": True, "polygonlabels": ["cat"]}}]}]}]


def of_json(folder: Path, path: Path) -> None:
    from wsss.data.folder.json_files import read_json_labels

    drawn(read_json_labels(folder, CLASSES, FILES))


def of_cvat_xml(folder: Path, path: Path) -> None:
    from wsss.data.folder.cvat_xml import read_cvat_labels

    if found := read_cvat_labels(folder, None, FILES):
        drawn(found)


def of_voc_xml(folder: Path, path: Path) -> None:
    from wsss.data.boxes import XmlBoxes
    from wsss.data.folder.annotations import read_xml_labels
    from wsss.data.voc import annotation_classes
    from wsss.errors import DataError

    try:
        annotation_classes(path)
    except DataError:
        pass
    read_xml_labels(folder, None, FILES)
    XmlBoxes(folder, {"a": "annotations/a.xml"}, FILES, CLASSES)["a"]


def of_yolo(folder: Path, path: Path) -> None:
    from wsss.data.folder.annotations import read_yolo_labels

    drawn(read_yolo_labels(folder, CLASSES, FILES))


def of_colours(folder: Path, path: Path) -> None:
    from wsss.data.folder.masks import read_colours

    read_colours(path).values(CLASSES)


def of_coco_boxes(folder: Path, path: Path) -> None:
    from wsss.data.boxes import CocoBoxes, has_boxes

    has_boxes(path)
    len(CocoBoxes(path, folder, FILES, CLASSES))


def classes_of(folder: Path, path: Path) -> None:
    from wsss.data.folder.classes import find_classes

    find_classes(folder)


def a_list(folder: Path, path: Path) -> None:
    from wsss.data.ids import read_list

    read_list(path, FILES)


def kept_labels(folder: Path, path: Path) -> None:
    from wsss.data.voc import _stored_labels

    _stored_labels(folder, ["a"])


# Images and masks.

def an_image(folder: Path, path: Path) -> None:
    from wsss.data.duplicates import _grey
    from wsss.data.images import check_image, image_size, is_upright_jpeg, read_image, read_mask, read_numbers
    from wsss.errors import DataError

    reads = (image_size, check_image, is_upright_jpeg, read_image, read_mask, read_numbers, lambda path: read_image(path, (0, 9)),
                 lambda path: read_numbers(path, True), lambda path: _grey(path, None, None))
    try:
        reads[zlib.crc32(path.read_bytes()) % len(reads)](path)   # one of them, the same for one content
    except DataError:
        pass


def image_seeds() -> list[bytes]:
    grey = np.arange(48, dtype=np.uint8).reshape(SIZE)
    return [picture(), numbers(), numbers("L"), numbers("I;16"), picture("JPEG"), picture("WEBP"), picture("BMP"), picture("TIFF"), encoded(grey, "TIFF", compression="tiff_lzw"),
            encoded(grey > 9), encoded(grey, "GIF"), picture("JPEG", progressive=True), encoded(grey.astype(np.float32), "TIFF"), encoded(np.dstack([grey] * 4), "PNG")]


def colour_seeds() -> list[bytes]:
    return [picture(), numbers(), numbers("L"), picture("JPEG"), picture("WEBP"), picture("TIFF"), encoded(np.eye(6, 8) > 0)]


def number_seeds() -> list[bytes]:
    return [numbers(), numbers("L"), numbers("I;16"), encoded(np.eye(6, 8) > 0)]


def mask_seeds() -> list[bytes]:
    return [numbers(), numbers("L")]


def _rle(content: bytes) -> None:
    from wsss.data.rle import decode_rle

    try:
        coded = json.loads(content)
    except (ValueError, RecursionError):
        return
    decode_rle(coded)


def brush(folder: Path) -> Callable[[bytes], object]:
    from wsss.annotations.label_studio import decode_brush

    return lambda content: decode_brush(list(content), SIZE)


def brush_seeds() -> list[bytes]:
    from wsss.annotations.label_studio import encode_brush

    return [bytes(encode_brush(np.eye(*SIZE) > 0)), bytes(encode_brush(np.ones(SIZE, bool)))]


def proposals(folder: Path, path: Path) -> None:
    from wsss.data.dataset import Dataset
    from wsss.data.proposals import check_proposals, digest_of_proposals, read_proposals
    from wsss.errors import DataError

    dataset = Dataset("x", folder, CLASSES, {"train": (), "val": (), "all": ()}, {}, FILES)
    digest_of_proposals(folder, ["a"])
    try:
        check_proposals(folder, dataset, ["a"])
    except DataError:
        pass
    read_proposals(folder, "a", SIZE)


# Data sets of others.

def official_coco() -> bytes:
    from wsss.data.coco_layout import CATEGORY_IDS, COCO_CLASSES

    return json.dumps({"images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": 6, "width": 8}], "annotations": [
        {"id": 1, "image_id": 9, "category_id": 1, "iscrowd": 0, "bbox": [1, 1, 3, 3], "segmentation": [[1, 1, 4, 1, 4, 4]]},
        {"id": 2, "image_id": 9, "category_id": 18, "iscrowd": 0, "bbox": [1, 1, 3, 3], "segmentation": {"size": [6, 8], "counts": [10, 5, 33]}},
        {"id": 3, "image_id": 9, "category_id": 18, "iscrowd": 1, "bbox": [1, 1, 3, 3], "segmentation": {"size": [6, 8], "counts": ":5Q1"}}],
        "categories": [{"id": number, "name": name} for number, name in zip(CATEGORY_IDS, COCO_CLASSES)]}).encode()


def of_official_coco(folder: Path, path: Path) -> None:
    from wsss.data.coco_instances import pycocotools_mask
    from wsss.data.coco_json import read_instances
    from wsss.data.coco_prepare import render

    part = read_instances(path, "train2014")
    for number, annotations in part.annotations.items():
        if part.sizes[number] == SIZE:   # that of the image was compared before
            for policy in ("official", "clean"):
                render(annotations, SIZE, policy, pycocotools_mask())


def coco_labels(folder: Path, path: Path) -> None:
    from wsss.data.coco import _read_labels

    _read_labels(folder, "official")


def coco_marker(folder: Path, path: Path) -> None:
    from wsss.data.coco import _read_marker

    _read_marker(folder, "official")


def coco_label_seeds() -> list[bytes]:
    from wsss.data.coco_layout import VERSION

    sources = {f"instances_{part}.json": {"bytes": 1, "digest": "x", "images": 1} for part in ("train2014", "val2014")}
    return [("# " + json.dumps({"version": VERSION, "sources": sources}) + "\nname,classes\nCOCO_train2014_1,person;dog\nCOCO_val2014_2,\n").encode()]


def coco_marker_seeds() -> list[bytes]:
    from wsss.data.coco_layout import VERSION

    return [json.dumps({"policy": "official", "version": VERSION, "sources": {"x": {"bytes": 1}}, "complete": True}).encode()]


def wsol_folder(folder: Path) -> None:
    for kind in ("CUB", "OpenImages"):
        (folder / f"dataset/{kind}/x").mkdir(parents=True, exist_ok=True)
        (folder / f"metadata/{kind}/val").mkdir(parents=True, exist_ok=True)
        for image_id in IDS:
            (folder / f"dataset/{kind}/x/{image_id}.png").write_bytes(picture())
        for name, lines in WSOL.items():
            (folder / f"metadata/{kind}/val/{name}").write_text(lines if kind == "CUB" or name != "localization.txt" else WSOL_MASKS)


WSOL = {"image_ids.txt": "x/a.png\nx/b.png\n", "class_labels.txt": "x/a.png,0\nx/b.png,1\n", "image_sizes.txt": "x/a.png,8,6\nx/b.png,8,6\n",
        "localization.txt": "x/a.png,0,0,4,4\nx/b.png,1,1,8,6\n"}
WSOL_MASKS = "x/a.png,x/c.png,\nx/b.png,x/c.png,x/a.png\n"


def wsol(kind: str, split: str, name: str) -> Callable[[Path], Callable[[bytes], object]]:
    def read(folder: Path, path: Path) -> None:
        from wsss.data.wsol import open_wsol

        dataset = open_wsol(folder, kind)
        for image_id in dataset.mask_files:
            dataset.mask(image_id)

    return into(f"metadata/{split}/val/{name}", read, wsol_folder)


# Exports of annotation tools.

def dataset_of(folder: Path) -> Any:
    from wsss.data.dataset import Dataset

    return Dataset("x", folder, CLASSES, {"train": IDS, "val": (), "all": IDS}, dict.fromkeys(IDS, (0,)), FILES)


def export(form: str) -> Callable[[Path, Path], None]:
    def read(folder: Path, path: Path) -> None:
        from pipeline.actions._corrections import READERS, opened

        with opened(path if path.suffix == ".zip" else path.parent) as root:
            for draw in READERS[form](root, dataset_of(folder)).values():
                draw()
    return read


def export_of_masks(folder: Path) -> None:
    images(folder)
    (folder / "export/SegmentationClass").mkdir(parents=True, exist_ok=True)
    (folder / "export/SegmentationClass/a.png").write_bytes(encoded(np.full((*SIZE, 3), 128, np.uint8)))


def corrections(folder: Path, path: Path) -> None:
    from wsss.data.corrections import find_corrections

    dataset = dataset_of(folder)
    dataset = replace(dataset, corrections=find_corrections(folder / "corrected", dataset))
    dataset.correction("a")


def saliency(folder: Path, path: Path) -> None:
    from wsss.data.saliency import check_saliency, find_saliency, read_saliency

    dataset = dataset_of(folder)
    dataset = replace(dataset, saliency=find_saliency(folder / "saliency", dataset))
    check_saliency(dataset, ["a"])
    read_saliency(dataset, "a", SIZE)


def archive(folder: Path, path: Path) -> None:
    import shutil

    from wsss.data.archives import unpack

    try:
        unpack(path, folder / "new")
    finally:
        assert sorted(found.name for found in folder.iterdir()) in (["archive", "images", "new"], ["archive", "images"])
        shutil.rmtree(folder / "new", ignore_errors=True)


# Maps, weights and files of the official code.

def official_seeds() -> list[bytes]:
    import torch

    from wsss.official import OfficialMaps, write_maps

    maps = OfficialMaps(np.array([0]), np.full((1, 2, 2), 0.5, np.float32), np.full((1, *SIZE), 0.5, np.float32))
    found = []
    from tempfile import TemporaryDirectory
    with TemporaryDirectory() as folder:
        for lpcam in (False, True):
            write_maps(Path(folder, "x.npy"), maps, lpcam)
            found.append(Path(folder, "x.npy").read_bytes())
    array = np.array({"keys": torch.tensor([0]), "cam": np.ones((1, 2, 2), np.float32), "high_res": np.ones((1, *SIZE), np.float32), "x": np.float32(1)}, object)
    for protocol in (2, 4):
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(content, np.lib.format.header_data_from_array_1_0(array))
        found.append(content.getvalue() + pickle.dumps(array, protocol))
    return found


def official(folder: Path, path: Path) -> None:
    from wsss.official import read_maps

    read_maps(path, SIZE, (0,))


def saved(value: Any, **options: Any) -> bytes:
    import torch

    content = io.BytesIO()
    torch.save(value, content, **options)
    return content.getvalue()


def state_seeds() -> list[bytes]:
    import torch

    state = {"fc.weight": torch.ones(2, 3), "layer.bias": torch.zeros(3, dtype=torch.float16), "n": torch.tensor(1)}
    return [saved(state), saved({"state_dict": state, "epoch": 1}), saved(state, _use_new_zipfile_serialization=False)]


def prototype_seeds() -> list[bytes]:
    import torch

    return [saved({0: torch.ones(2, 3), 1: torch.zeros(1, 3)})]


def safetensors_seeds() -> list[bytes]:
    import safetensors.torch
    import torch

    return [safetensors.torch.save({"a": torch.ones(2, 3), "b": torch.zeros(2, dtype=torch.float16)}, {"json": json.dumps({"n_classes": 2, "backbone": {"name": "tiny"}})})]


def weights(folder: Path, path: Path) -> None:
    from wsss.errors import WeightsError
    from wsss.networks.facts import read_metadata
    from wsss.networks.foreign import what_it_is
    from wsss.networks.weights import read_tensors
    from wsss.official_networks import CAM, own_state

    try:
        read_metadata(path)
    except WeightsError:
        pass
    what_it_is(own_state(read_tensors(path), CAM, "x"))


def prototypes(folder: Path, path: Path) -> None:
    from wsss.official import PROTOTYPE_FILES, read_prototypes

    (folder / PROTOTYPE_FILES[1]).write_bytes(path.read_bytes())
    read_prototypes(folder)


def imported_prototypes(folder: Path, path: Path) -> None:
    from steps.parts.imported_prototypes import read_imported

    read_imported(str(path), "x", 2, 3)


def prototype_arrays() -> list[bytes]:
    return [npz(center=np.ones((2, 3), np.float32), class_index=np.array([0, 1]), is_background=np.zeros(2, bool), kept=np.ones(2, bool))]


def map_names(folder: Path, path: Path) -> None:
    from wsss.map_files.layout import class_names

    class_names(CLASSES, path, "x")


def map_file(folder: Path, path: Path) -> None:
    from wsss.errors import DataError
    from wsss.map_files.files import find_files
    from wsss.map_files.layout import Layout, class_names
    from wsss.map_files.reading import Values, check_headers, maps_of, read_arrays

    names = class_names(CLASSES, None, "x")
    found = find_files(folder / "maps", IDS, names).get("a", ())
    for layout in (Layout(names), Layout(names, patch=4)) if found else ():
        try:
            check_headers(found, layout, SIZE, (0,), CLASSES)
            maps_of(read_arrays(found), layout, Values(), SIZE, (0,), CLASSES)
        except DataError:
            pass


# What runs write: the folder may be another user's.

LINE = {"id": "a", "height": 6, "width": 8, "grids": [[2, 2]], "range": [0, 1], "source": "x", "classes": [0], "seconds": 0.1, "files": {"a.npy": [136, 1234]}, "added": {"k": {"by": {}, "classes": [0]}}}
PACKED = {"id": "b", "height": 6, "width": 8, "grids": [[2, 2]], "source": "x", "classes": [0], "files": {"b.npy": [136, 99, 512]}, "pack": "packs/0-of-1.tar"}


def a_step(folder: Path) -> None:
    images(folder)
    (folder / "step/packs").mkdir(parents=True, exist_ok=True)
    (folder / "step/a.npy").write_bytes(npy(np.zeros((1, 4), np.float16)))
    (folder / "step/packs/0-of-1.tar").write_bytes(bytes(4096))


def journal(folder: Path, path: Path) -> None:
    from steps.runtime.artifacts import Labels, Maps
    from steps.runtime.journal import journal_lines, last_packed, pack_names, unfinished
    from wsss.errors import ArtifactError

    step = folder / "step"
    problems: list[str] = []
    list(journal_lines(step, problems))
    pack_names([path])
    last_packed(path)
    dataset = dataset_of(folder)
    unfinished(step, IDS, dataset)
    maps, labels = Maps(step), Labels(step, 2)
    for image_id in list(maps.index)[:4]:
        for read in (maps.packed, lambda image_id: maps.at(image_id, "full"), labels):
            try:
                read(image_id)
            except ArtifactError:
                pass


def journal_merged(folder: Path, path: Path) -> None:
    from steps.runtime.journal import merge_journals

    merge_journals(folder / "step", IDS)


def a_map(folder: Path, path: Path) -> None:
    from steps.runtime.artifacts import read_array

    read_array(path, "step")


def arrays(folder: Path, path: Path) -> None:
    from steps.runtime.artifacts import read_arrays

    read_arrays(path, ("a", "b"))


def a_label(folder: Path, path: Path) -> None:
    from steps.runtime.artifacts import read_label

    read_label(path, SIZE, 2, "step")


def in_run(read: Callable[[Any], object]) -> Callable[[Path, Path], object]:
    def call(folder: Path, path: Path) -> object:
        from pipeline.runfolder.folder import RunFolder

        return read(RunFolder(folder / "run"))
    return call


MANIFEST = {"fingerprint": "f", "identity": {"data": {"classes": ["cat"]}, "make_cam": {"x": 1}}, "sources": {}, "files": {"index.jsonl": [1, 2]}, "result": {}, "images": 1,
            "made": {"total": 1}, "device": "cpu", "seconds": 1.0, "disk_mb": 1.0, "peak_memory_mb": 1.0}


def a_manifest(run: Any) -> None:
    run.manifest("make_cam")
    run.damaged_files("make_cam")
    run.recorded("make_cam")


def run_json(run: Any) -> None:
    run.check_data({"kind": "folder", "name": "x", "root": "r", "classes": ["cat"]})


def a_claim(run: Any) -> None:
    run.claims.living()


def work(run: Any) -> None:
    run.recorded("make_cam")


def jobs(run: Any) -> None:
    from pipeline.cluster.jobs import read_jobs

    read_jobs(run)


@cache
def composed() -> Any:
    from pipeline.config import compose

    return compose(["experiment=smoke"])


def config_seeds() -> list[bytes]:
    from omegaconf import OmegaConf

    return [OmegaConf.to_yaml(composed()).encode()]


def a_config(folder: Path, path: Path) -> None:
    from omegaconf import OmegaConf

    from pipeline.runfolder.recorded import recorded_config

    OmegaConf.to_container(recorded_config(folder / "run", composed(), ()), resolve=False)


def training_log(folder: Path, path: Path) -> None:
    from steps.parts.shown import read_log

    read_log(folder)


def remembered(folder: Path, path: Path) -> None:
    from wsss.data.checked import reading_wanted, remembered

    with reading_wanted(folder / "m", folder, FILES):
        pass
    assert remembered(folder / "m", folder, {"a": FILES["a"]}, "s", lambda: {"a": [1]})["a"] is not None


def remembered_seeds() -> list[bytes]:
    return [json.dumps({"state": "x s", "values": {"a": [1]}}).encode()]


def doubts(folder: Path, path: Path) -> None:
    from types import SimpleNamespace

    from pipeline.actions._labels import _read
    from pipeline.report.doubted import doubted

    _read(folder / "run/check_labels/check_labels.json")
    doubted(SimpleNamespace(folder=SimpleNamespace(path=folder / "run"), dataset=dataset_of(folder)))


def report_state(folder: Path, path: Path) -> None:
    from pipeline.report.page import _state_of

    _state_of(path)


def words(folder: Path) -> Callable[[bytes], object]:
    from pipeline.words import as_meant, quoted

    def call(content: bytes) -> object:
        word = content.decode("utf-8", "replace")[:400]   # a command line is the user's own
        return as_meant(word), quoted(word)
    return call


def shapes(folder: Path, path: Path) -> None:
    from wsss.data.shapes import _check_marker

    _check_marker(path.parent, {"version": 1})


def in_memory(read: Callable[[bytes], object]) -> Callable[[Path], Callable[[bytes], object]]:
    return lambda folder: read


def journal_seeds() -> list[bytes]:
    return [b"".join(json.dumps(line).encode() + b"\n" for line in lines) for lines in ([LINE, PACKED], [LINE], [PACKED, {**LINE, "id": "c"}])]


PARSERS = (   # the quick ones first
    Parser("list", "lines", texts("a\nb\nimages/c.png\n", "a.png\n\nb\n"), into("train.txt", a_list), ("wsss.data.ids",)),
    Parser("table", "csv", texts("name,classes\na,cat\nb,dog;cat\nc,\n", "file;cat;dog\na.png;1;0\nb.png;0;1\nc.png;0;0\n", "a,cat,dog\nb,1\nc,2|1\n"), into("labels.csv", a_table), ("wsss.data.folder.table",)),
    Parser("classes", "lines", texts("cat\ndog\n", "cat\n\n"), into("classes.txt", classes_of), ("wsss.data.folder.classes",)),
    Parser("yaml_classes", "yaml", texts("names: [cat, dog]\nnc: 2\n", "names:\n  0: cat\n  1: dog\n"), into("data.yaml", classes_of), ("wsss.data.folder.classes",)),
    Parser("colours", "lines", texts("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n", "cat #800000\nbackground #000000\n", "cat,1\ndog,2\nignore,255\n"), into("t.txt", of_colours), ("wsss.data.folder.masks",)),
    Parser("labels_of_voc", "csv", texts("name,classes\na,cat;person\nb,\n"), into("image_labels.csv", kept_labels), ("wsss.data.voc",)),
    Parser("yolo", "lines", texts("0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.2 0.2\n", "1 0.1 0.1 0.8 0.1 0.5 0.9\n"), into("labels/a.txt", of_yolo), ("wsss.data.folder.annotations",)),
    Parser("cvat_xml", "xml", texts(CVAT), into("annotations.xml", of_cvat_xml), ("wsss.data.folder.cvat_xml",)),
    Parser("voc_xml", "xml", texts(VOC), into("annotations/a.xml", of_voc_xml), ("wsss.data.boxes", "wsss.data.folder.annotations", "wsss.data.voc")),
    Parser("coco_json", "json", jsons(COCO), into("x.json", of_json), ("wsss.data.folder.json_files", "wsss.data.rle")),
    Parser("labelme_json", "json", jsons(LABELME), into("a.json", of_json), ("wsss.data.folder.json_files",)),
    Parser("coco_boxes", "json", jsons(COCO), into("x.json", of_coco_boxes), ("wsss.data.boxes",)),
    Parser("rle", "json", jsons({"size": [6, 8], "counts": [10, 5, 33]}, {"size": [6, 8], "counts": ":5Q1"}), in_memory(_rle), ("wsss.data.rle",)),
    Parser("brush", "bytes", brush_seeds, brush, ("wsss.annotations.label_studio",)),
    Parser("official_coco", "json", lambda: [official_coco()], into("instances_train2014.json", of_official_coco), ("wsss.data.coco_json", "wsss.data.coco_instances", "wsss.data.coco_prepare")),
    Parser("coco_labels", "lines", coco_label_seeds, into("image_labels.csv", coco_labels), ("wsss.data.coco",)),
    Parser("coco_marker", "json", coco_marker_seeds, into("masks_official/prepared.json", coco_marker), ("wsss.data.coco_layout",)),
    Parser("marker_of_shapes", "json", jsons({"version": 1}), into("s/shapes.json", shapes), ("wsss.data.shapes",)),
    Parser("checked", "json", remembered_seeds, into("m.values", remembered), ("wsss.data.checked",)),
    Parser("words", "lines", texts("data.root=~/写 (1)", "steps=[make_cam,'a,b']", "+a.b={c: 1, d: [2, 3]}", "x=\"a\\\"b\"", "~a"), words, ("pipeline.words",)),
    Parser("proposals_json", "json", jsons([{"segmentation": {"size": [6, 8], "counts": [10, 5, 33]}}], {"annotations": [{"segmentation": {"size": [6, 8], "counts": ":5Q1"}}]}), into("a.json", proposals), ("wsss.data.proposals",)),
    Parser("proposals_png", "png", number_seeds, into("a.png", proposals), ("wsss.data.proposals",)),
    Parser("map_names", "yaml", texts("- cat\n- dog\n", "0: cat\nhund: dog\nbg: background\nx: null\n"), into("names.yaml", map_names), ("wsss.map_files.layout",)),
    Parser("journal", "lines of json", journal_seeds, into("step/index.jsonl", journal, a_step), ("steps.runtime.journal", "steps.runtime.store", "steps.runtime.packs", "steps.runtime.artifacts")),
    Parser("merged_journal", "lines of json", journal_seeds, into("step/journals/0-of-1.jsonl", journal_merged, a_step), ("steps.runtime.journal", "steps.runtime.packs")),
    Parser("array", "npy", lambda: [npy(np.zeros((2, 4), np.float16)), npy(np.ones(3, np.float32))], into("a.npy", a_map), ("steps.runtime.artifacts",)),
    Parser("manifest", "json", jsons(MANIFEST), into("run/make_cam/manifest.json", in_run(a_manifest)), ("pipeline.runfolder.folder", "steps.runtime.artifacts")),
    Parser("run_json", "json", jsons({"format": 2, "data": {"kind": "folder", "name": "x", "root": "r", "classes": ["cat"]}}), into("run/run.json", in_run(run_json)), ("pipeline.runfolder.folder",)),
    Parser("work_json", "json", jsons({"step": "make_cam", "identity": {"a": 1}}), into("run/make_cam.partial-x/work.json", in_run(work)), ("pipeline.runfolder.folder",)),
    Parser("claim", "json", jsons({"owner": {"host": "h", "pid": 1, "started": 1, "job": None, "restarts": 0, "boot": "", "namespace": "", "machine": ""}, "since": "2026-01-01 00:00:00", "makes": [["make_cam", 0, 1]],
                                   "reads": ["x"], "now": None}), into("run/.locks/h-1.json", in_run(a_claim)), ("pipeline.runfolder.claims",)),
    Parser("jobs", "json", jsons([{"step": "make_cam", "part": "shards", "number": "12", "shards": 2}]), into("run/submit/jobs.json", in_run(jobs)), ("pipeline.cluster.jobs",)),
    Parser("training_log", "lines of json", texts('{"step": 1, "epoch": 0, "loss": 0.5}\n{"step": 2, "epoch": 0, "loss": 0.4, "map": null}\n'), into("log.jsonl", training_log), ("steps.parts.shown",)),
    Parser("doubts", "csv", texts("image,list,labels,doubt,not_seen,seen\na,train,cat,0.9,cat 0.10,dog 0.90\n"), into("run/check_labels/labels.csv", doubts), ("pipeline.report.doubted", "pipeline.actions._labels")),
    Parser("report_state", "lines", texts('<!doctype html><meta name="state" content="0123abc">'), into("report.html", report_state), ("pipeline.report.page",)),
    Parser("image", "png", image_seeds, into("x.png", an_image), ("wsss.data.images", "wsss.data.headers", "wsss.data.duplicates")),
    Parser("label", "png", mask_seeds, into("step/a.png", a_label), ("steps.runtime.artifacts", "wsss.data.images")),
    Parser("folder_image", "png", colour_seeds, into("images/a.png", a_folder, with_masks), ("wsss.data.folder", "wsss.data.folder.layout", "wsss.data.dataset")),
    Parser("folder_mask", "png", mask_seeds, into("masks/a.png", a_folder, with_masks), ("wsss.data.folder", "wsss.data.folder.masks", "wsss.data.instances")),
    Parser("folder_objects", "png", mask_seeds, into("instances/a.png", a_folder, with_masks), ("wsss.data.instances",)),
    Parser("folder_json", "json", jsons(COCO), into("annotations/x.json", a_folder), ("wsss.data.folder", "wsss.data.folder.layout")),
    Parser("folder_labels", "csv", texts("name,classes\na,cat\nb,dog;cat\nc,\n"), into("labels.csv", a_folder, with_masks), ("wsss.data.folder",)),
    Parser("corrections", "png", mask_seeds, into("corrected/a.png", corrections), ("wsss.data.corrections",)),
    Parser("saliency", "png", lambda: [numbers("L")], into("saliency/a.png", saliency), ("wsss.data.saliency",)),
    Parser("wsol_ids", "lines", texts(WSOL["image_ids.txt"]), wsol("cub", "CUB", "image_ids.txt"), ("wsss.data.wsol",)),
    Parser("wsol_labels", "lines", texts(WSOL["class_labels.txt"]), wsol("cub", "CUB", "class_labels.txt"), ("wsss.data.wsol",)),
    Parser("wsol_sizes", "lines", texts(WSOL["image_sizes.txt"]), wsol("cub", "CUB", "image_sizes.txt"), ("wsss.data.wsol",)),
    Parser("wsol_boxes", "lines", texts(WSOL["localization.txt"]), wsol("cub", "CUB", "localization.txt"), ("wsss.data.wsol",)),
    Parser("wsol_masks", "lines", texts(WSOL_MASKS), wsol("openimages", "OpenImages", "localization.txt"), ("wsss.data.wsol",)),
    Parser("label_studio", "json", jsons(TASKS), into("export/tasks.json", export("label_studio")), ("pipeline.actions._corrections", "wsss.annotations.label_studio")),
    Parser("coco_export", "json", jsons(COCO), into("export/x.json", export("coco")), ("pipeline.actions._corrections",)),
    Parser("labelme_export", "json", jsons(LABELME), into("export/a.json", export("labelme")), ("pipeline.actions._corrections",)),
    Parser("cvat_export", "lines", texts("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,128,128::\ndog:0,128,0::\nignore:1,1,1::\n"), into("export/labelmap.txt", export("cvat"), export_of_masks), ("pipeline.actions._corrections",)),
    Parser("zip_export", "zip", lambda: [zipped(**{"labelmap.txt": b"cat:128,128,128::\ndog:0,128,0::\nbackground:0,0,0::\n", "SegmentationClass__a.png": encoded(np.full((*SIZE, 3), 128, np.uint8))})], into("x.zip", export("cvat")), ("pipeline.actions._corrections",)),
    Parser("zip", "zip", lambda: [zipped(a__x=b"abc", a__y=b"x" * 999)], into("archive", archive), ("wsss.data.archives",)),
    Parser("tar", "bytes", lambda: [tarred(mode) for mode in ("", "gz", "bz2", "xz")], into("archive", archive), ("wsss.data.archives",)),
    Parser("arrays", "zip", lambda: [npz(a=np.ones((2, 3), np.float32), b=np.arange(3))], into("a.npz", arrays), ("steps.runtime.artifacts",)),
    Parser("prototypes_npz", "zip", prototype_arrays, into("prototypes.npz", imported_prototypes), ("steps.parts.imported_prototypes",)),
    Parser("map_npy", "npy", lambda: [npy(np.ones((1, 2, 2), np.float32)), npy(np.ones((2, 2), np.float16)), npy(np.ones((1, 4), np.float32)), npy(np.ones((1, 1, 5), np.float32))], into("maps/a.npy", map_file), ("wsss.map_files.files", "wsss.map_files.reading")),
    Parser("map_npz", "zip", lambda: [npz(high_res=np.ones((1, 6, 8), np.float32), keys=np.array([0])), npz(cat=np.ones((2, 2), np.float32))], into("maps/a.npz", map_file), ("wsss.map_files.files", "wsss.map_files.reading")),
    Parser("map_png", "png", lambda: [numbers("L"), numbers("I;16")], into("maps/a_cat.png", map_file), ("wsss.map_files.files", "wsss.map_files.reading")),
    Parser("map_pickle", "pickle", official_seeds, into("maps/a.npy", map_file), ("wsss.map_files.reading", "wsss.official")),
    Parser("official_maps", "pickle", official_seeds, into("a.npy", official), ("wsss.official",)),
    Parser("official_prototypes", "zip", prototype_seeds, into("class_ceneters.pt", prototypes), ("wsss.official",)),
    Parser("weights_pth", "zip", state_seeds, into("w.pth", weights), ("wsss.networks.weights", "wsss.networks.facts")),
    Parser("safetensors", "safetensors", safetensors_seeds, into("w.safetensors", weights), ("wsss.networks.weights", "wsss.networks.facts")),
    Parser("config", "yaml", config_seeds, into("run/config.yaml", a_config), ("pipeline.runfolder.recorded", "pipeline.runfolder.reading"), slow=25),
)
