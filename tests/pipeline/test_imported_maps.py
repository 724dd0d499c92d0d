"""Maps of other projects as seeds of all later steps, and refiner=proposals: whole runs, and what is refused before any work."""

import json

import numpy as np
import pytest
from PIL import Image

from pipeline import Pipeline
from pipeline.order import BY_NAME
from steps.runtime.artifacts import Maps
from tests.conftest import SMOKE, actions, quick_plan
from wsss.data.drawing import CLASSES
from wsss.data.images import read_mask, write_mask
from wsss.errors import ConfigError, DataError
from wsss.map_files.reading import Activation

IMPORT = ("experiment=imported_maps", *(word for word in SMOKE if word not in ("experiment=smoke",)))


@pytest.fixture
def run(smoke_outputs, tmp_path):
    """`run(*words)` composes a run of imported maps on the data set of the finished run."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/.data").symlink_to(smoke_outputs / ".data")
    return lambda *words: Pipeline.compose(*IMPORT, f"outputs={tmp_path / 'outputs'}", f"imported.maps={tmp_path / 'maps'}",
                                           f"train_irn.weights={smoke_outputs / 'smoke/train_irn/weights.safetensors'}", *words)


@pytest.fixture
def maps(smoke_outputs, tmp_path):
    """The maps of the finished run, to be written as other projects write them, and the folder to write to."""
    (tmp_path / "maps").mkdir()
    return Maps(smoke_outputs / "smoke/make_lpcam"), tmp_path / "maps"


def clip_es(found, folder, size="full"):
    for image_id in found.index:
        array = found.at(image_id, size).numpy()
        np.save(folder / f"{image_id}.npy", {"keys": np.array(found.classes(image_id)), "attn_highres": array.astype(np.float16)})


def score(summary, step):
    return summary["scores"][step]["miou"]


def test_clip_es_through_the_crf(smoke_outputs, maps, run):
    found, folder = maps
    clip_es(found, folder)
    summary = run("refiner=crf", "refiner.iterations=1").run()
    expected = json.loads((smoke_outputs / "smoke/summary.json").read_text())["scores"]["make_lpcam"]["miou"]
    assert score(summary, "imported") == pytest.approx(expected, abs=5e-3) and score(summary, "make_sem_seg_labels") > 0
    ours = Maps(run().folder.path / "imported")
    for image_id in list(ours.index)[::7]:
        assert np.allclose(ours.at(image_id, "full"), found.at(image_id, "full"), atol=2e-3)   # float16 twice
    assert set(actions(run("refiner=crf", "refiner.iterations=1")).values()) == {"skip", "left out"}
    folder.rename(folder.with_name("elsewhere"))   # the files count, not their folder
    assert actions(run(f"imported.maps={folder.with_name('elsewhere')}"))["imported"] == "skip"
    changed = run(f"imported.maps={folder.with_name('elsewhere')}", "imported.activation=relu").plan()[0]
    assert (changed.action, changed.why) == ("re-run", "imported.activation: none -> relu")


def test_mctformer_through_irn_and_a_segmentation_network(maps, run):
    """Maps by class on the patch grid, without files of images without a class."""
    found, folder = maps
    for image_id in found.index:
        small = found.at(image_id, (6, 9)).numpy()
        np.save(folder / f"{image_id}.npy", dict(zip(found.classes(image_id), small)))
    steps = ("imported", "eval_cam", "cam_to_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg", "train_seg", "infer_seg", "eval_seg")
    summary = run(f"steps=[{','.join(steps)}]", "refiner=walk", "train_seg.epochs=1", "train_seg.absent_classes=true", "segmenter.width=8",
                  "infer_seg.crf_iterations=1", "cam_to_ir_label_pass=true", *(f"{BY_NAME[name].flag}=true" for name in steps[:2] + steps[3:])).run()
    assert score(summary, "imported") > 0 and score(summary, "make_sem_seg_labels") > 0 and "infer_seg" in summary["scores"]
    assert summary["steps"]["cam_to_ir_label"]["images"] == 24
    files = list((run().folder.path / "imported").glob("*.npy"))
    assert all(np.load(file).shape[1] == 54 for file in files)   # as in the file


def test_probabilities_keep_their_size(maps, run):
    """WeCLIP's scores of all classes: after a softmax they are used as they are."""
    found, folder = maps
    for image_id in found.index:
        scores = np.zeros((1, 9, 12, 12), np.float32)
        scores[0, 0] = 1
        for index, each in zip(found.classes(image_id), found.at(image_id, (12, 12)).numpy()):
            scores[0, index + 1] = 4 * each
        np.save(folder / f"{image_id}.npy", {"segs": scores, "msc_segs": scores})
    words = ("refiner=none", "imported.activation=softmax", "imported.normalise=false")
    assert score(run(*words).run(), "imported") > 0
    ours, image_id = Maps(run().folder.path / "imported"), next(iter(found.index))
    for size in ("full", "strided"):
        assert 0.2 < ours.at(image_id, size).max() < 0.99
    with pytest.raises(DataError, match="its numbers are from 0 to .*state imported.range"):
        run("refiner=none", "name=other").plan()


def test_headers_are_read_before_any_work(maps, run):
    found, folder = maps
    for image_id in found.index:
        np.save(folder / f"{image_id}.npy", found.at(image_id, (6, 9)).numpy())
    data = run()
    data.plan()
    first, second, third = list(found.index)[:3]
    np.save(folder / f"{first}.npy", np.zeros((5, 6, 9)))
    height, width = data.dataset.size(second)
    np.save(folder / f"{second}.npy", np.zeros((len(found.classes(second)), width, height)))
    (folder / f"{third}.npy").write_bytes(b"")
    with pytest.raises(DataError) as told:
        run().run()
    lines = str(told.value).splitlines()
    assert lines[0] == f"imported.maps={folder}: 3 problems" and f"{first}.npy: it has 5 maps; expected " in lines[1]
    assert "height and width are exchanged" in lines[2] and f"{third}.npy: it is damaged or no .npy file" in lines[3]
    (folder / f"{first}.npy").unlink()
    with pytest.raises(ConfigError, match=f"lacks the files of 1 of the 32 images that are needed .{first}.npy."):
        run().run()
    assert not run().folder.path.exists()


def test_classes_that_cannot_be_used_are_told_before_work(run):
    with pytest.raises(ConfigError, match="imported.classes=none.yaml cannot be read"):
        run("imported.classes=none.yaml").plan()


@pytest.mark.parametrize(("changes", "message"), [
    ({"grid": [7]}, r"imported.grid=\[7\] is not possible"), ({"patch": 0}, "imported.patch=0 is not possible"),
    ({"patch": 2, "grid": [2, 3]}, "imported.patch=2 .* and then no grid"), ({"range": [1, 0]}, "imported.range=.* the first below the second"),
    ({"normalise": False, "activation": Activation.relu}, "imported.normalise=False is not possible: expected true, or a range")])
def test_settings_that_are_not_possible(changes, message):
    usual = {"maps": None, "split": None, "key": None, "classes": None, "grid": None, "patch": None, "activation": Activation.none,
             "range": None, "normalise": True}
    with pytest.raises(ConfigError, match=message):
        BY_NAME["imported"].settings_type(**usual | changes)


# refiner=proposals

def test_each_proposal_has_one_class(smoke, outputs, tmp_path):
    words = ("from_step=make_sem_seg_labels", "refiner=proposals", f"refiner.masks={tmp_path / 'masks'}")
    data = smoke()
    data.plan()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="refiner.masks=.*/masks: 32 problems\n  - no proposals of "):
        smoke(*words).run()
    for image_id in data.dataset.lists["all"]:
        if data.dataset.has_masks([image_id]):
            write_mask(tmp_path / f"masks/{image_id}.png", data.dataset.mask(image_id) + 1)   # background is a region, too
    assert score(smoke(*words).run(), "make_sem_seg_labels") > 0
    masks = {path.stem: read_mask(path) for path in (outputs / "smoke/make_sem_seg_labels").glob("*.png")}
    for image_id, mask in masks.items():
        truth = data.dataset.mask(image_id)
        assert all(len(np.unique(mask[truth == value])) == 1 for value in np.unique(truth))   # each region has one class
    assert actions(smoke(*words))["make_sem_seg_labels"] == "skip"
    prediction = smoke(*words).predict(data.dataset.image_path(image_id), classes=[next(iter(CLASSES))])
    assert prediction.mask is None and "make_lpcam" in prediction.maps   # there are no proposals of another image
    Image.fromarray(np.zeros_like(truth)).save(tmp_path / f"masks/{image_id}.png")
    plan = {planned.name: planned.why for planned in quick_plan(smoke(*words))}
    assert plan["make_sem_seg_labels"] == "refiner.masks changed"
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / f"masks/{image_id}.png")
    with pytest.raises(DataError, match=f"{image_id}.png has masks 5 high and 5 wide, but its image is"):
        smoke(*words).plan()
