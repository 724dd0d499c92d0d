"""From pseudo masks to a segmentation network: training, masks of images without labels, scores."""

import json
import shutil

import numpy as np
import pytest

from pipeline import Pipeline
from pipeline.config import compose, typed
from steps.runtime import inference
from tests.conftest import SMOKE, actions, contents, copied
from tests.pipeline.conftest import CHOSEN, STEPS
from wsss.data.dataset import Dataset
from wsss.data.images import decode_mask, read_mask, resize_image, write_mask
from wsss.errors import ConfigError
from wsss.metrics.boundary import BoundaryIoU
from wsss.metrics.semantic import Confusion
from wsss.networks.facts import read_metadata
from wsss.segmenters.inference import probabilities_of


def test_the_network_is_trained_on_pseudo_masks_and_scored_on_val(trained):
    run = trained / "smoke"
    summary = json.loads((run / "summary.json").read_text())
    scores = {kind: summary["scores"][kind] for kind in ("infer_seg_before_crf", "infer_seg")}
    assert [score["title"] for score in scores.values()] == ["segmentations before the CRF", "segmentations"]
    data = Pipeline.compose(*CHOSEN, f"outputs={trained}")
    data.plan()
    for kind, score in scores.items():
        folder = run / "infer_seg" / ("before_crf" if kind.endswith("crf") else "")
        confusion, boundary = Confusion(8), BoundaryIoU(8)
        for image_id in data.dataset.lists["val"]:
            for measure in (confusion, boundary):
                measure.update(read_mask(folder / f"{image_id}.png"), data.dataset.mask(image_id))
        assert score["images"] == 8 and score["miou"] == confusion.scores(only_present=True).miou and 0 < score["miou"] < 1
        assert score["boundary_iou"] == boundary.mean(confusion.present) and score["boundary_iou_by_label"] == boundary.scores(confusion.present) and 0 < boundary.mean() < 1
    assert scores["infer_seg"]["miou"] != scores["infer_seg_before_crf"]["miou"]
    facts = read_metadata(run / "train_seg/weights.safetensors")
    assert facts["segmenter"] == {"method": "fpn", "width": 16} and facts["backbone"]["depth"] == "tiny"
    log = [json.loads(line) for line in (run / "train_seg/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == list(range(6)) and 0 < log[-1]["val_miou"] < 1
    report = (run / "report/report.html").read_text()
    assert "segmentations before the CRF" in report and "boundary IoU" in report and "train_seg: mean IoU on val" in report and "Confusion matrix of the segmentations" in report


def test_val_images_are_segmented_in_their_own_size_and_their_labels_are_not_read(trained):
    pipeline = Pipeline.compose(*CHOSEN, f"outputs={trained}")
    assert set(actions(pipeline).values()) == {"skip"}
    masks = {path.stem: read_mask(path) for path in (trained / "smoke/infer_seg").glob("*.png")}
    assert masks.keys() == set(pipeline.dataset.lists["val"])
    assert all(mask.shape == pipeline.dataset.size(image_id) and mask.max() <= 8 for image_id, mask in masks.items())


def test_a_lost_mask_and_a_lost_training_come_back_with_the_same_bytes(trained, tmp_path):
    outputs = copied(trained, tmp_path)
    lost, weights = min((outputs / "smoke/infer_seg").glob("*.png")), outputs / "smoke/train_seg/weights.safetensors"
    before = lost.read_bytes(), weights.read_bytes()
    lost.unlink(), weights.unlink()
    pipeline = Pipeline.compose(*CHOSEN, f"outputs={outputs}")
    assert actions(pipeline)["train_seg"] == actions(pipeline)["infer_seg"] == "continue"
    pipeline.run()
    assert (lost.read_bytes(), weights.read_bytes()) == before


def test_the_crf_and_the_mirror_image_change_the_masks_and_nothing_before(trained, tmp_path):
    outputs = copied(trained, tmp_path)
    before = contents(outputs / "smoke/infer_seg")
    pipeline = Pipeline.compose(*CHOSEN, f"outputs={outputs}", "infer_seg.crf=false", "infer_seg.flip=false")
    planned = {name: action for name, action in actions(pipeline).items() if action != "skip"}
    assert planned == {"infer_seg": "re-run", "eval_seg": "re-run"}
    pipeline.run()
    after = contents(outputs / "smoke/infer_seg")
    assert any(after[name] != before[name] for name in after if name.endswith(".png"))
    assert any("before_crf" in name for name in before) and not any("before_crf" in name for name in after)
    assert "infer_seg_before_crf" not in json.loads((outputs / "smoke/summary.json").read_text())["scores"]


def test_a_lost_mask_of_before_the_crf_comes_back_and_a_damaged_one_is_found(trained, tmp_path):
    outputs = copied(trained, tmp_path)
    lost, damaged = sorted((outputs / "smoke/infer_seg/before_crf").glob("*.png"))[:2]
    before = lost.read_bytes(), damaged.read_bytes()
    lost.unlink(), damaged.write_bytes(damaged.read_bytes()[:-8] + bytes(8))
    pipeline = Pipeline.compose(*CHOSEN, f"outputs={outputs}")
    broken = {verified.name: verified.broken for verified in pipeline.verify()}["infer_seg"]
    assert broken.keys() == {str(lost), str(damaged)}
    pipeline.run()
    assert (lost.read_bytes(), damaged.read_bytes()) == before


def test_a_large_image_is_segmented_in_windows(trained, tmp_path):
    """Of 96 px in windows of 48: of the size of the image and much like those of the whole."""
    outputs = copied(trained, tmp_path)
    whole = contents(outputs / "smoke/infer_seg")
    pipeline = Pipeline.compose(*CHOSEN, f"outputs={outputs}", "infer_seg.window=48", "infer_seg.overlap=16")
    pipeline.run()
    data = pipeline.dataset
    shares = []
    for image_id in data.lists["val"]:
        mask = read_mask(outputs / f"smoke/infer_seg/{image_id}.png")
        assert mask.shape == data.size(image_id)
        shares.append((mask == decode_mask(whole[f"{image_id}.png"], "whole")).mean())
    assert 0.5 < np.mean(shares) < 1


def test_images_of_the_same_size_are_segmented_together_where_that_is_faster(trained, tmp_path, monkeypatch):
    """As on a GPU: the same masks but for rounding, and the same bits if one mask of a group is missing. Images of one size here."""
    outputs, sizes = copied(trained, tmp_path), []
    monkeypatch.setattr(Dataset, "size", lambda self, image_id: (90, 96))
    monkeypatch.setattr(Dataset, "image", lambda self, image_id, image=Dataset.image: resize_image(image(self, image_id), (90, 96)))
    monkeypatch.setattr("wsss.segmenters.inference.probabilities_of", lambda logits, images, *more:
                        sizes.append(len(images)) or probabilities_of(logits, images, *more))

    def made(together):
        monkeypatch.setattr(inference, "max_together", lambda device, pixels: together)
        shutil.rmtree(outputs / "smoke/infer_seg")
        sizes.clear()
        Pipeline.compose(*CHOSEN, f"outputs={outputs}", "from_step=infer_seg", "to_step=infer_seg").run()
        return contents(outputs / "smoke/infer_seg")
    expected = made(1)
    assert sizes == 8 * [1]
    grouped = made(3)
    masks = [name for name in expected if name.endswith(".png")]
    assert sizes == [3, 3, 2] and len(masks) == 16
    differing = [(decode_mask(grouped[name], name) != decode_mask(expected[name], name)).mean() for name in masks]
    assert max(differing) < 0.001
    sizes.clear()
    lost = outputs / "smoke/infer_seg" / min(name for name in masks if "/" not in name)
    lost.unlink()
    Pipeline.compose(*CHOSEN, f"outputs={outputs}", "from_step=infer_seg", "to_step=infer_seg").run()
    assert lost.read_bytes() == grouped[lost.name] and sizes == [3]   # its whole group, nothing else


def test_on_the_ground_truth_no_pseudo_masks_are_needed(smoke_outputs, tmp_path):
    outputs = copied(smoke_outputs, tmp_path)
    shutil.rmtree(outputs / "smoke")
    pipeline = Pipeline.compose(*CHOSEN, f"outputs={outputs}", "train_seg.labels=gt", "steps=[train_seg,infer_seg,eval_seg]")
    assert set(actions(pipeline).values()) == {"run"}
    summary = pipeline.run()
    assert 0 < summary["scores"]["infer_seg"]["miou"] < 1
    manifest = json.loads((outputs / "smoke/train_seg/manifest.json").read_text())
    assert manifest["identity"].get("reads", {}) == {}


def test_the_fully_supervised_bound_stands_beside(trained, tmp_path):
    outputs = copied(trained, tmp_path)
    pipeline = Pipeline.compose(*CHOSEN, f"steps=[{','.join(STEPS)},train_seg_gt,infer_seg_gt,eval_seg_gt]", f"outputs={outputs}", "report.write=true")
    assert {name for name, action in actions(pipeline).items() if action != "skip"} == {"train_seg_gt", "infer_seg_gt", "eval_seg_gt"}
    summary = pipeline.run()
    run, scores = outputs / "smoke", summary["scores"]
    assert {kind: score["trained_on"] for kind, score in scores.items() if "trained_on" in score} == {
        "infer_seg_before_crf": "pseudo masks", "infer_seg": "pseudo masks", "infer_seg_gt_before_crf": "ground truth", "infer_seg_gt": "ground truth"}
    manifests = {name: json.loads((run / name / "manifest.json").read_text()) for name in ("train_seg", "train_seg_gt", "infer_seg", "infer_seg_gt")}
    assert [manifests[name]["settings"]["labels"] for name in ("train_seg", "train_seg_gt")] == ["pseudo", "gt"]
    assert "reads" in manifests["train_seg"]["identity"] and manifests["train_seg_gt"]["identity"]["reads"] == {}
    usual = typed(compose(["experiment=shapes_seg_bound"]))   # the ground truth needs no correction of what pseudo masks miss
    assert (usual.infer_seg.background_weight, usual.infer_seg_gt.background_weight) == (0.4, 1.0)
    bounds = {remark["stage"]: remark["text"] for remark in summary["stages"]["remarks"] if remark["about"] == "bound"}
    assert bounds.keys() == {"infer_seg_before_crf", "infer_seg"}
    share = 100 * scores["infer_seg"]["miou"] / scores["infer_seg_gt"]["miou"]
    assert bounds["infer_seg"].startswith(f"segmentations: {share:.1f} % of the fully supervised bound (mIoU {100 * scores['infer_seg']['miou']:.1f};")
    report = (run / "report/report.html").read_text()
    assert "of the fully supervised bound" in report and "segmentations (infer_seg_gt)" in report


def test_a_class_that_no_label_shows_is_refused(trained, tmp_path):
    outputs, wanted = copied(trained, tmp_path), ("train_seg.absent_classes=false", "steps=[train_seg,infer_seg,eval_seg]")
    finished = Pipeline.compose(*CHOSEN, f"outputs={outputs}")
    finished.plan()
    dataset = finished.dataset
    lacking = dataset.classes[3]
    some = tmp_path / "some.txt"
    some.write_text("".join(f"{image_id}\n" for image_id in dataset.lists["train"] if 3 not in dataset.labels[image_id]))
    with pytest.raises(ConfigError, match=f"the class {lacking} occurs in no image of the list .*some.txt: a network cannot learn what it never sees"):
        Pipeline.compose(*CHOSEN, *wanted, f"outputs={outputs}", "name=other", "train_seg.labels=gt", f"train_seg.split={some}").plan()
    masks = {image_id: read_mask(outputs / f"smoke/make_sem_seg_labels/{image_id}.png") for image_id in dataset.lists["train"]}
    missing = [name for value, name in enumerate(dataset.classes, start=1) if not any((mask == value).any() for mask in masks.values())]
    assert missing   # two classes have no prototype in this small run
    with pytest.raises(ConfigError, match=f"the class(es)? {', '.join(missing)} occurs? in no pseudo mask"):
        Pipeline.compose(*CHOSEN, "train_seg.absent_classes=false", "train_seg.epochs=1", f"outputs={outputs}", "replace=true").run()


def test_pseudo_masks_are_no_validation_masks(trained, tmp_path):
    source, root = next((trained / ".data").glob("*")), tmp_path / "mine"
    for name in ("images", "classes.txt", "labels.csv", "train.txt", "val.txt"):
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        (root.mkdir(exist_ok=True), copy(source / name, root / name))
    (root / "masks").mkdir()
    for image_id in (root / "val.txt").read_text().split():
        (root / f"masks/{image_id}.png").symlink_to(trained / f"smoke/infer_seg/{image_id}.png")
    words = [word for word in CHOSEN if not word.startswith(("experiment=", "data.n_", "steps="))]
    with pytest.raises(ConfigError, match="the masks of val in .*mine are pseudo masks: .*infer_seg/.*.png is in the folder of a run"):
        Pipeline.compose("experiment=folder_seg", *words, f"data.root={root}", f"outputs={tmp_path / 'runs'}").plan()


def test_a_network_has_a_backbone_of_its_own(smoke_outputs, tmp_path):
    outputs = copied(smoke_outputs, tmp_path)
    words = (*CHOSEN, f"outputs={outputs}", "backbone@train_seg.backbone=resnet18", "train_seg.backbone.pretrained=false", "to_step=train_seg", "train_seg.epochs=1")
    pipeline = Pipeline.compose(*words)
    assert {name for name, action in actions(pipeline).items() if action != "skip"} == {"train_seg", "infer_seg", "eval_seg"}   # not the classifier
    pipeline.run()
    facts = read_metadata(outputs / "smoke/train_seg/weights.safetensors")
    assert facts["backbone"]["depth"] == "resnet18" and read_metadata(outputs / "smoke/train_cam/weights.safetensors")["backbone"]["depth"] == "tiny"
    manifest = json.loads((outputs / "smoke/train_seg/manifest.json").read_text())
    assert "backbone" not in manifest["settings"] and manifest["identity"]["backbone"]["depth"] == "resnet18"
    assert "train_seg.backbone" in (Pipeline.compose(*words, "action=report").report() or outputs / "smoke/report/report.html").read_text()
    with pytest.raises(ConfigError, match="train_seg.backbone.depht: there is no such key; did you mean 'depth'"):
        Pipeline.compose(*words, "train_seg.backbone.depht=resnet34")
    with pytest.raises(ConfigError, match="train_seg.backbone='resnet18' is not possible: expected backbone@train_seg.backbone=NAME, with a file of conf/backbone/"):
        Pipeline.compose(*CHOSEN, "train_seg.backbone=resnet18").plan()


def test_a_training_on_the_ground_truth_is_stale_when_a_mask_changes(smoke_outputs, tmp_path):
    source = next((smoke_outputs / ".data").glob("*"))
    root = tmp_path / "mine"
    shutil.copytree(source, root)
    words = [word for word in CHOSEN if not word.startswith(("experiment=", "data.n_", "steps="))]

    def composed(*more):
        return Pipeline.compose("experiment=folder_seg", *words, f"data.root={root}", f"outputs={tmp_path}", "name=bound",
                                "steps=[train_seg,infer_seg]", "train_seg.labels=gt", *more)
    composed().run()
    assert set(actions(composed()).values()) == set(actions(composed("train_seg.absent_classes=false")).values()) == {"skip"}
    pipeline = composed()
    pipeline.plan()
    path = root / "masks" / f"{min(pipeline.dataset.lists['train'])}.png"
    mask = read_mask(path)
    mask[mask == 0] = mask.max()
    write_mask(path, mask)
    with pytest.raises(ConfigError, match=r"train_seg is finished in .* and would be replaced \(masks of truth changed\)"):
        composed().plan()


def test_the_supervised_bound_is_trained_even_if_the_other_network_is_a_file(trained, tmp_path):
    weights = trained / "smoke/train_seg/weights.safetensors"
    pipeline = Pipeline.compose(*CHOSEN, f"outputs={copied(trained, tmp_path)}", f"train_seg.weights={weights}", "name=both",
                                "steps=[train_seg,infer_seg,eval_seg,train_seg_gt,infer_seg_gt,eval_seg_gt]")
    planned = actions(pipeline)
    assert planned["train_seg"] == "imported" and planned["train_seg_gt"] == "run"
    summary = pipeline.run()
    assert [score["trained_on"] for score in summary["scores"].values()] == 2 * ["a file"] + 2 * ["ground truth"]
    assert pipeline.recorded(pipeline.folder.path).masks == "infer_seg"   # what the report shows of images


def test_a_trained_network_can_be_taken_from_a_file(trained, tmp_path):
    outputs = copied(trained, tmp_path)
    weights = outputs / "mine.safetensors"
    shutil.copy(outputs / "smoke/train_seg/weights.safetensors", weights)
    pipeline = Pipeline.compose(*CHOSEN, f"outputs={outputs}", "name=taken", f"train_seg.weights={weights}",
                                "steps=[train_seg,infer_seg,eval_seg]")
    assert actions(pipeline)["train_seg"] == "imported"
    pipeline.run()
    first, second = (contents(outputs / name / "infer_seg") for name in ("smoke", "taken"))
    assert all(second[name] == first[name] for name in first if name.endswith(".png"))


def test_what_cannot_be_trained_on_is_refused_before_work(smoke_outputs, tmp_path):
    outputs = copied(smoke_outputs, tmp_path)
    with pytest.raises(ConfigError, match="train_seg.split contains 8 images of the list val, on which it is validated"):
        Pipeline.compose(*CHOSEN, f"outputs={outputs}", "train_seg.split=all", "train_seg.labels=gt",
                         "steps=[train_seg,infer_seg,eval_seg]").plan()
    with pytest.raises(ConfigError, match="make_sem_seg_labels.bg_threshold is chosen"):
        Pipeline.compose(*CHOSEN, f"outputs={outputs}", "train_seg.split=val").plan()


def test_without_masks_nothing_is_validated_or_scored(tmp_path, smoke_outputs):
    source = next((smoke_outputs / ".data").glob("*"))
    root = tmp_path / "mine"
    shutil.copytree(source / "images", root / "images")
    for name in ("classes.txt", "labels.csv", "train.txt", "val.txt"):
        shutil.copy(source / name, root)
    shutil.copy(source / "labels.csv", root) if (source / "labels.csv").exists() else None
    words = [word for word in CHOSEN if not word.startswith(("experiment=", "data.n_", "steps="))]
    pipeline = Pipeline.compose("experiment=folder_seg", *words, f"data.root={root}", f"outputs={tmp_path}", "train_cam.epochs=1",
                                "train_seg.epochs=1", "refiner=none", "name=unlabelled")
    summary = pipeline.run()
    assert "infer_seg" not in summary["scores"] and "val_miou" not in (pipeline.folder.path / "train_seg/log.jsonl").read_text()
    masks = list((pipeline.folder.path / "infer_seg").glob("*.png"))
    assert len(masks) == len(pipeline.dataset.lists["val"] or pipeline.dataset.lists["train"])
    assert all(np.unique(read_mask(path)).max() <= 8 for path in masks)


def test_deeplab_is_trained_on_a_backbone_of_its_own(smoke_outputs, tmp_path):
    outputs, words = copied(smoke_outputs, tmp_path), (
        "steps=[train_seg,infer_seg,eval_seg]", "train_seg.labels=gt", "train_seg.absent_classes=true", "segmenter=deeplab_v2_advcam",
        "train_seg.backbone.depth=tiny", "train_seg.backbone.pretrained=false", "train_seg.steps=2", "train_seg.crop_size=65",
        "infer_seg.crf=false", "name=deeplab")
    pipeline = Pipeline.compose(*SMOKE, *words, f"outputs={outputs}")
    summary = pipeline.run()
    assert summary["scores"]["infer_seg"]["images"] == 8
    facts = read_metadata(outputs / "deeplab/train_seg/weights.safetensors")
    assert facts["segmenter"] == {"method": "deeplab_v2", "rates": [6, 12, 18, 24], "scales": [0.5, 0.75], "loss": "balanced"}
    assert facts["backbone"] == {"method": "resnet_dilated", "depth": "tiny", "style": "torchvision", "trained_on": "imagenet", "norm": "group"}
    log = [json.loads(line) for line in (outputs / "deeplab/train_seg/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [0, 1] and all(np.isfinite(line["loss"]) for line in log if "loss" in line)
    assert set(actions(Pipeline.compose(*SMOKE, *words, f"outputs={outputs}")).values()) == {"skip"}
