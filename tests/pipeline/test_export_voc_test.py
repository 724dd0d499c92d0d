"""`action=export_voc_test`: the archive for the evaluation server of VOC, and everything that is refused before it is written."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from pipeline import Pipeline
from pipeline.actions.export_voc import mask_step
from pipeline.actions.export_voc_test import segmenting_step
from pipeline.config import compose, typed
from tests.conftest import quick_plan
from tests.pipeline.test_export_voc import pretend
from tests.wsss.test_voc import AUG, SIZE, TRAIN, VAL, build
from wsss.errors import ArtifactError, ConfigError, DataError
from wsss.palette import VOC_PALETTE

TEST = ("2012_000001", "2008_000006", "2012_000003")
OTHER = "2012_000009"   # an image in no list
NAMES = [f"results/VOC2012/Segmentation/comp6_test_cls/{image_id}.png" for image_id in TEST]


@pytest.fixture
def voc(tmp_path):
    """`voc(*overrides)` composes a run on VOC of drawn images, with three test images and one more."""
    root = build(tmp_path / "VOC2012")
    for number, image_id in enumerate((*TEST, OTHER)):
        pixels = np.random.default_rng(100 + number).integers(0, 256, (24 + number, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"JPEGImages/{image_id}.jpg")
    (root / "ImageSets/Segmentation/test.txt").write_text("\n".join(TEST) + "\n")
    target = f"export_to={tmp_path / 'sent'}"
    return lambda *overrides: Pipeline.compose("experiment=lpcam_voc12_deeplab", f"data.root={root}", f"outputs={tmp_path / 'out'}", "name=mine",
                                               "threads=1", "backbone=tiny", "segmenter=light", "train_seg.absent_classes=true", *overrides, *[target] * ("action=export_voc_test" in overrides))


def drawn(pipeline, ids, **changed):
    quick_plan(pipeline)   # opens the data set
    return {image_id: np.random.default_rng(7).integers(0, 21, pipeline.dataset.size(image_id), dtype=np.uint8) for image_id in ids} | changed


def test_the_plan_trains_on_all_pseudo_masks_scores_val_and_segments_the_test_images_besides(voc):
    planned = {planned.name: planned.lists for planned in quick_plan(voc())}
    assert set(planned["train_seg"]["ids"]) == set(planned["make_sem_seg_labels"]["ids"]) == set(AUG)
    assert set(planned["eval_sem_seg"]["scored"]) == set(TRAIN) and planned["make_sem_seg_labels"]["val"] == ()   # none is chosen on val
    assert all(planned[name].get("val", ()) == () for name in planned)
    assert set(planned["eval_seg"]["scored"]) == set(planned["infer_seg"]["ids"]) == set(VAL)
    planned = {planned.name: planned.lists for planned in quick_plan(voc("infer_seg.split=test"))}
    assert planned["infer_seg"]["ids"] == (*VAL, *TEST) and set(planned["eval_seg"]["scored"]) == set(VAL)
    assert all(not set(TEST) & set(ids) for name, lists in planned.items() if name != "infer_seg" for ids in lists.values())


def test_a_file_with_ids_works_too_and_no_other_step_may_have_images_without_labels(voc, tmp_path):
    (tmp_path / "mine.txt").write_text(f"{OTHER}\n{TEST[1]}\n")
    pipeline = voc(f"infer_seg.split={tmp_path / 'mine.txt'}", "steps=[train_seg,infer_seg]", "train_seg.labels=gt")
    assert {planned.name: planned.lists["ids"] for planned in quick_plan(pipeline)}["infer_seg"] == (OTHER, TEST[1])
    assert OTHER not in pipeline.dataset.lists["all"] and pipeline.dataset.unlabelled == {*TEST, OTHER}
    for step in ("train_cam", "make_cam", "eval_seg", "train_seg"):
        with pytest.raises(ConfigError, match=f"^{step}: 3 images of its list have no labels in .*, for example '2012_000001', but it reads "
                                              rf"labels. Choose another list by {step}.split; only infer_seg.split may have|eval_seg.split='test' is to be "
                                              "scored, but not all|make_cam.split='test' covers 0"):
            voc(f"{step}.split=test", *(["steps=[train_cam,make_cam]", "seed_maps=make_cam"] if step == "make_cam" else [])).plan()


def test_the_archive_is_that_of_the_server(voc, tmp_path):
    pipeline = voc("infer_seg.split=test", "infer_seg.crf=false")
    masks = drawn(pipeline, (*VAL, *TEST))
    pretend(pipeline, masks, "infer_seg")
    findings = voc("infer_seg.split=test", "infer_seg.crf=false", "action=export_voc_test").export_voc_test()
    assert [(finding.what.split(str(tmp_path))[0], finding.found, finding.note) for finding in findings] == [
        ("segmentations, list test", 3, ""), ("archive ", 1, "written")]
    path = tmp_path / "sent/results.tgz"
    first = path.read_bytes()
    with tarfile.open(path, "r:gz") as archive:
        assert archive.getnames() == NAMES and all(entry.isfile() for entry in archive)
        for image_id, name in zip(TEST, NAMES):
            content = archive.extractfile(name).read()
            assert content[24] == 8 and content[25] == 3   # of IHDR: 8 bits, palette
            with Image.open(io.BytesIO(content)) as picture:
                assert picture.mode == "P" and picture.getpalette() == VOC_PALETTE.reshape(-1).tolist()
                assert np.array_equal(picture, masks[image_id])
    again = voc("infer_seg.split=test", "infer_seg.crf=false", "action=export_voc_test").export_voc_test()
    assert again[-1].note == "was there" and path.read_bytes() == first
    # without infer_seg.split it is the list test
    assert voc("infer_seg.crf=false", "action=export_voc_test").export_voc_test()[0].what == "segmentations, list test"
    path.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="results.tgz exists and holds other masks. Set force=true"):
        voc("infer_seg.crf=false", "action=export_voc_test").export_voc_test()
    voc("infer_seg.crf=false", "action=export_voc_test", "force=true").export_voc_test()
    assert path.read_bytes() == first


@pytest.mark.parametrize(("change", "error", "message"), [
    (None, ConfigError, r"the segmentations cover 2 of the 3 ids of the list test \(first missing: '2012_000003'\). Make the others first: "
                        r"python run_pipeline.py .* infer_seg.split=test$"),
    (np.full((26, 36), 255, np.uint8), DataError, "the mask of '2012_000003' holds 255, expected 0 to 20"),
    (np.full((26, 36), 21, np.uint8), ArtifactError, "holds values beyond the 20 classes"),
    (np.zeros(SIZE, np.uint8), ArtifactError, "holds a label of")])
def test_missing_and_wrong_masks_are_refused_before_anything_is_written(voc, tmp_path, change, error, message):
    pipeline = voc("infer_seg.split=test")
    pretend(pipeline, drawn(pipeline, TEST[:2]) | ({} if change is None else {TEST[2]: change}), "infer_seg")
    with pytest.raises(error, match=message):
        voc("infer_seg.split=test", "action=export_voc_test").export_voc_test()
    assert not (tmp_path / "sent").exists()


def test_what_else_is_refused(voc, smoke, tmp_path):
    with pytest.raises(ConfigError, match="needs masks of images without labels, but no step of this experiment makes any .*Add infer_seg to steps"):
        voc("steps=[train_cam,make_cam]", "seed_maps=make_cam", "action=export_voc_test").export_voc_test()
    with pytest.raises(ConfigError, match="has no segmentations of this configuration"):
        pipeline = voc("infer_seg.split=test")
        pretend(pipeline, drawn(pipeline, TEST), "infer_seg")
        voc("action=export_voc_test", "infer_seg.scales=[0.5]").export_voc_test()
    shapes = smoke("action=export_voc_test", f"export_to={tmp_path / 'sent'}", "steps=[train_seg,infer_seg]", "train_seg.labels=gt")
    with pytest.raises(ConfigError, match="is for the 20 classes of PASCAL VOC, but data=shapes has others"):
        shapes.export_voc_test()


def test_the_pseudo_masks_that_a_network_is_trained_on_are_still_exported_as_such():
    assert mask_step(typed(compose(["experiment=shapes_seg"]))) == "make_sem_seg_labels"
    assert mask_step(typed(compose(["experiment=shapes_seg", "steps=[train_seg,infer_seg]", "train_seg.labels=gt"]))) == "infer_seg"


def test_segmentations_of_the_supervised_bound_are_not_sent_in_place_of_those_from_pseudo_masks():
    assert segmenting_step(typed(compose(["experiment=shapes_seg_bound"]))) == "infer_seg"
