"""`action=export_voc`: a folder that segmentation tools read as PASCAL VOC, and everything that is refused before it is written."""

import json
import os
import shutil
from unittest.mock import patch

import numpy as np
import pytest
from PIL import ExifTags, Image
from torchvision.datasets import VOCSegmentation

from pipeline import Pipeline
from pipeline.actions.export_voc import training_list
from pipeline.commandline import act
from pipeline.plan.plan import work_folder
from pipeline.runfolder.folder import MANIFEST_KEYS
from steps.runtime.artifacts import write_label
from steps.runtime.journal import Journal, file_sum, merge_journals
from tests.conftest import quick_plan
from tests.wsss.test_voc import AUG, TRAIN, VAL, build
from wsss.data import Dataset
from wsss.data.drawing import CLASSES
from wsss.data.images import read_image, read_mask, write_mask
from wsss.errors import ArtifactError, ConfigError, DataError
from wsss.palette import VOC_PALETTE


@pytest.fixture
def target(tmp_path):
    return tmp_path / "VOCdevkit" / "VOC2012"


@pytest.fixture
def export(smoke, target):
    """`export(*overrides)` composes the export of the finished run of the embedded data set to `target`."""
    return lambda *overrides: smoke("action=export_voc", f"export_to={target}", *overrides)


def files_below(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


class HandedOver(VOCSegmentation):
    """As torchvision reads PASCAL VOC, but with the folder of the augmented masks."""

    _TARGET_DIR = "SegmentationClassAug"


def test_torchvision_reads_it(export, target, outputs, capsys):
    pipeline = export()
    assert act(pipeline) == 0
    data, masks = pipeline.dataset, outputs / "smoke" / "make_sem_seg_labels"
    told = capsys.readouterr().out
    assert all(line in told for line in ("pseudo masks, list train", "ground truth, list val", "images copied", "67 new, 0 replaced"))
    for name in ("train", "val"):
        read = HandedOver(str(target.parents[1]), image_set=name)
        assert len(read) == len(data.lists[name])
        for (image, mask), image_id in zip(read, data.lists[name]):
            assert np.array_equal(image, data.image(image_id)) and image.size == mask.size
            assert mask.mode == "P" and mask.getpalette() == VOC_PALETTE.reshape(-1).tolist()
            expected = read_mask(masks / f"{image_id}.png") if name == "train" else data.mask(image_id)
            assert np.array_equal(mask, expected)
    assert sorted(os.listdir(target)) == ["ImageSets", "JPEGImages", "SegmentationClassAug", "classes.txt"]
    assert (target / "classes.txt").read_text().splitlines() == list(data.classes)
    assert len(list((target / "SegmentationClassAug").iterdir())) == len(list((target / "JPEGImages").iterdir())) == 32


def test_a_second_call_writes_what_is_missing_and_replaces_what_differs_only_by_force(export, target):
    export().export_voc()
    # no file is a link
    assert {(path.is_symlink(), path.stat().st_nlink) for path in target.rglob("*.*")} == {(False, 1)}
    before = files_below(target)
    for gone in ("JPEGImages/train_0002.jpg", "SegmentationClassAug/train_0003.png"):
        (target / gone).unlink()
    assert export().export_voc()[-1].note == "2 new, 0 replaced"
    after = files_below(target)
    assert after.keys() == before.keys() and len({name for name in after if after[name] != before[name]}) == 2

    pipeline = export()
    for name in ("JPEGImages/train_0001.jpg", "SegmentationClassAug/val_0001.png"):
        (target / name).write_bytes(b"mine")
    (target / "classes.txt").unlink()
    with pytest.raises(ConfigError, match=r"VOC2012 holds 2 files that differ from what would be written, for example JPEGImages/train_0001.jpg"):
        pipeline.export_voc()
    assert not (target / "classes.txt").exists() and (target / "JPEGImages/train_0001.jpg").read_bytes() == b"mine"
    assert export("force=true").export_voc()[-1].note == "1 new, 2 replaced"
    assert len(HandedOver(str(target.parents[1]), image_set="val")[0][0].getbands()) == 3
    assert pipeline.dataset.image("train_0001").shape[2] == 3   # the image itself is as it was


@pytest.mark.parametrize("overrides, message", [
    (["train_irn.epochs=3"], r"has no pseudo masks of this configuration \(train_irn changed\). Make them first: python run_pipeline.py exp"),
    (["train_cam.split=all"], r"8 ids of the training list all are in val, for example 'val_0000'"),
    (["steps=[train_cam,make_cam]", "seed_maps=make_cam"], r"needs pseudo masks, but no step of this experiment makes any .*Add make_sem_seg_labels"),
    (["export_to=null"], "action=export_voc needs a target folder: set export_to=DIR"),
])
def test_what_is_refused(export, target, overrides, message):
    with pytest.raises(ConfigError, match=message):
        export(*overrides).export_voc()
    assert not target.exists()


def test_the_training_list_is_that_of_the_first_training():
    assert training_list(Pipeline.compose("data=voc12", "data.root=x").config) == "train_aug"
    assert training_list(Pipeline.compose("experiment=imported_maps", "train_irn.split=val").config) == "val"
    assert training_list(Pipeline.compose("experiment=imported_maps", "steps=[imported,eval_cam]").config) == "train"


def test_the_data_set_and_the_run_are_no_targets(export, outputs):
    (pipeline := export()).export_voc()
    for folder in (pipeline.dataset.root, outputs / "smoke", outputs / "smoke" / "make_cam"):
        with pytest.raises(ConfigError, match="is the data set or the run itself. Choose another folder"):
            export(f"export_to={folder}").export_voc()


def test_masks_that_are_missing_or_do_not_fit(export, outputs, target):
    with patch.object(Dataset, "mask", side_effect=DataError("val_0003.png holds the values [99]")), pytest.raises(DataError, match="holds the"):
        export().export_voc()
    masks = outputs / "smoke" / "make_sem_seg_labels"
    whole = read_mask(masks / "train_0002.png")
    (masks / "train_0002.png").unlink()
    with pytest.raises(ConfigError, match=r"cover 23 of the 24 ids of the list train \(first missing: 'train_0002'\). Make the others "
                                          r"first: python run_pipeline.py .* make_sem_seg_labels.split=train$") as error:
        export().export_voc()
    assert "export" not in str(error.value)
    for wrong, message in ((np.full_like(whole, 99), f"holds values beyond the {len(CLASSES)} classes"), (whole[1:], "holds a label of")):
        write_mask(masks / "train_0002.png", wrong)
        index = (masks / "index.jsonl").read_text().splitlines()
        with_size = [line if "train_0002" not in line else resized(line, (masks / "train_0002.png").stat().st_size) for line in index]
        (masks / "index.jsonl").write_text("\n".join(with_size) + "\n")
        with pytest.raises(ArtifactError, match=message):
            export().export_voc()
    assert not target.exists()


def resized(line, size):
    """A line of the index, with another size of its one file: as if the step had written it."""
    facts = json.loads(line)
    facts["files"] = {name: [size, crc] for name, (_, crc) in facts["files"].items()}
    facts.pop("crc", None)
    return json.dumps(facts)


def folder_set(root):
    """Six images of a user's folder in every form: JPEG, PNG, a suffix in capitals, EXIF orientation; grey masks of two of them."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for number, name in enumerate(("plain.jpg", "drawn.png", "loud.JPEG", "turned.jpg", "held.jpg", "kept.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (36, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / name, **({"exif": turned} if name == "turned.jpg" else {}))
    for name in ("held", "kept"):
        Image.fromarray(np.tile(np.uint8([0, 1, 255]), (36, 16))).save(root / "masks" / f"{name}.png")
    (root / "classes.txt").write_text("cat\n")
    (root / "labels.csv").write_text("name,classes\n" + "".join(f"{name},cat\n" for name in ("plain", "drawn", "loud", "turned", "held", "kept")))
    (root / "val.txt").write_text("held\nkept\n")
    return root


@pytest.fixture
def own(tmp_path):
    """`own(*overrides)` composes a run on `folder_set` whose pseudo masks are those that `pretend` writes: no step is run."""
    root = folder_set(tmp_path / "photos")
    return lambda *overrides: Pipeline.compose("data=folder", f"data.root={root}", f"outputs={tmp_path / 'out'}", "name=own", "threads=1",
                                               "recipe=official", "backbone.pretrained=false", "backbone=resnet18", *overrides)


def pretend(pipeline, masks, step="make_sem_seg_labels"):
    """A finished step with masks, as a run leaves it; `masks`: id -> (H, W), or the one value of a mask in the size of the image."""
    (planned,) = [planned for planned in quick_plan(pipeline) if planned.name == step]
    folder, data = work_folder(pipeline.folder, planned), pipeline.dataset
    pipeline.folder.open(pipeline.data_identity)
    pipeline.folder.begin(planned.name, folder, planned.identity, [])
    journal = Journal(folder)
    for image_id, mask in masks.items():
        write_label(folder / f"{image_id}.png", mask if isinstance(mask, np.ndarray) else np.full(data.size(image_id), mask, np.uint8))
        journal.add(image_id, {"files": {f"{image_id}.png": file_sum(folder / f"{image_id}.png")}}, 0.0, height=1, width=1,
                    classes=list(data.labels[image_id]), source=data.digest_of_image(image_id))
    journal.close()
    merge_journals(folder, masks)
    facts = dict.fromkeys(MANIFEST_KEYS, 0) | {"fingerprint": planned.fingerprint, "identity": planned.identity}
    pipeline.folder.finish(planned.name, folder, facts)


def test_every_form_of_image_becomes_an_upright_jpeg(own, tmp_path, target):
    pretend(own(), {"plain": 1, "drawn": 0, "loud": 255, "turned": 1})
    pipeline = own("action=export_voc", f"export_to={target}")
    findings = {finding.what: finding.found for finding in pipeline.export_voc()}
    assert findings["images copied"] == 3 and findings["images written as upright JPEG"] == 3
    for name in ("train", "val"):
        for (image, mask), image_id in zip(HandedOver(str(target.parents[1]), image_set=name), pipeline.dataset.lists[name]):
            with Image.open(target / "JPEGImages" / f"{image_id}.jpg") as file:
                assert file.format == "JPEG"
            assert image.size == mask.size and np.abs(np.int32(image) - pipeline.dataset.full_image(image_id)).mean() < 8
            assert mask.getpalette() == VOC_PALETTE.reshape(-1).tolist()   # the ground truth was grey
    assert read_mask(target / "SegmentationClassAug" / "loud.png").min() == 255
    assert read_image(target / "JPEGImages" / "turned.jpg").shape == (48, 36, 3)
    shutil.rmtree(tmp_path / "photos" / "masks")   # without a ground truth there is no val
    shutil.rmtree(tmp_path / "out")
    pretend(own(), dict.fromkeys(("plain", "drawn", "loud", "turned"), 1))
    findings = {finding.what: finding.note for finding in own("action=export_voc", f"export_to={tmp_path / 'bare'}").export_voc()}
    assert findings["ground truth, list val"] == "no val.txt: not all of val has masks"
    assert os.listdir(tmp_path / "bare/ImageSets/Segmentation") == ["train.txt"] and not (tmp_path / "bare/SegmentationClassAug/held.png").exists()


def test_voc_hands_over_train_aug(tmp_path, target):
    root = build(tmp_path / "VOC2012")
    def compose(*overrides):
        return Pipeline.compose("data=voc12", f"data.root={root}", f"outputs={tmp_path / 'out'}", "threads=1", "recipe=official",
                                "backbone.pretrained=false", "backbone=resnet18", *overrides)
    pretend(compose(), dict.fromkeys(TRAIN, 1))
    with pytest.raises(ConfigError, match=r"the pseudo masks cover 2 of the 4 ids of the list train_aug \(first missing: '2008_000008'\). "
                                          r"Make the others first: python run_pipeline.py ((?!force).)* make_sem_seg_labels.split=train_aug$"):
        compose("action=export_voc", f"export_to={target}", "force=true").export_voc()
    shutil.rmtree(tmp_path / "out")
    pretend(compose("make_sem_seg_labels.split=train_aug"), dict.fromkeys(AUG, 1))
    compose("action=export_voc", f"export_to={target}").export_voc()
    lists = {path.name: tuple(path.read_text().split()) for path in (target / "ImageSets/Segmentation").iterdir()}
    assert lists == {"train_aug.txt": tuple(AUG), "val.txt": tuple(VAL)}
    assert {read_mask(target / f"SegmentationClassAug/{image_id}.png").max() for image_id in AUG} == {1}
    for image_id in VAL:
        assert (target / f"SegmentationClassAug/{image_id}.png").read_bytes() == (root / f"SegmentationClassAug/{image_id}.png").read_bytes()
