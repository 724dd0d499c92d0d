"""The boxes of drawn maps, scored: by each rule, in each frame, on boxes and on masks; what can be scored, and what is shown."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from steps import eval_loc
from steps.eval_loc import Boxes, Normalise, Resize, Settings
from steps.parts.localisation import Localiser
from steps.parts.pieces import Column, Curve, Table
from steps.runtime.artifacts import Maps, encode_array, read_json
from steps.runtime.context import Source, StepContext
from steps.runtime.journal import Journal
from steps.runtime.setup import Setup
from steps.runtime.store import FileWriter
from wsss.data.dataset import Dataset
from wsss.data.images import write_mask
from wsss.errors import ConfigError

SIZE = (20, 30)
SETTINGS = Settings(split=None, boxes=Boxes.component, threshold=None, fallback=0.2, interval=0.1, frame=None, resize=Resize.bilinear,
                    normalise=Normalise.after)
# The maps of (image, class): rectangles x0, y0, x1, y1 with their values, over 0. The first lies within the second, and so on.
PLATEAUS = {("a", 0): [((4, 2, 13, 11), 1.0), ((4, 2, 23, 11), 0.5)], ("b", 0): [((0, 0, 9, 9), 1.0), ((0, 0, 19, 9), 0.5)],
            ("b", 1): [((20, 10, 29, 19), 1.0)], ("v", 1): [((4, 2, 13, 11), 1.0), ((4, 2, 23, 11), 0.5)]}
BOXES = {"a": ((0, 4, 2, 23, 11),), "b": ((0, 0, 0, 9, 9),), "v": ((1, 4, 2, 13, 11),)}   # class 1 of b has none
PREDICTED = {"a": [(1, 2.0), (0, 1.0)], "b": [(0, 3.0), (1, 0.5)], "v": [(1, 1.0), (0, 0.0)]}


def drawn(rectangles):
    values = np.zeros(SIZE, np.float16)
    for (x0, y0, x1, y1), value in reversed(rectangles):
        values[y0:y1 + 1, x0:x1 + 1] = value
    return values


@pytest.fixture
def context(tmp_path):
    """`context(dataset=..., **settings)`: of eval_loc, after a step that has made the maps `PLATEAUS`."""
    labels = {image_id: tuple(c for i, c in PLATEAUS if i == image_id) for image_id in BOXES}
    maps = tmp_path / "make_cam"
    maps.mkdir()
    journal = Journal(maps)
    for image_id, classes in labels.items():
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / f"{image_id}.png")
        packed = np.stack([drawn(PLATEAUS[image_id, c]).ravel() for c in classes])
        journal.add(image_id, FileWriter(maps).write({f"{image_id}.npy": encode_array(packed)}), 0.1, source="", classes=list(classes),
                    height=SIZE[0], width=SIZE[1], grids=[list(SIZE)], predicted=PREDICTED[image_id])
    journal.close()
    dataset = Dataset("drawn", tmp_path, ("cat", "dog", "cow"), {"train": ("a", "b"), "val": ("v",), "all": ("a", "b", "v")}, labels,
                      {image_id: f"{image_id}.png" for image_id in labels}, box_lists=BOXES)

    def made(dataset=dataset, **settings):
        chosen = replace(SETTINGS, **settings)
        setup = Setup("eval_loc", chosen, SimpleNamespace(), dataset, {"maps": (Source("make_cam", {"make_cam": ""}),)})
        return StepContext("eval_loc", chosen, dataset, eval_loc.lists(setup), tmp_path / "eval_loc",
                           {"maps": (Source("make_cam", {"make_cam": ""}, maps),)})
    made.dataset = dataset
    return made


def scored(context, kind="make_cam"):
    context.folder.mkdir(exist_ok=True)
    eval_loc.run(context)
    eval_loc.reader(context.folder, len(context.dataset.classes))
    return read_json(context.folder / "scores.json")["scores"][kind]


def with_masks(dataset, boxes=True):
    """The data set with masks that hold the boxes, class 1 of b besides."""
    for image_id, found in BOXES.items():
        mask = np.zeros(SIZE, np.uint8)
        for index, x0, y0, x1, y1 in [*found, *([(1, 22, 12, 29, 19)] if image_id == "b" else [])]:
            mask[y0:y1 + 1, x0:x1 + 1] = index + 1
        mask[0, 0:2] = 255
        write_mask(dataset.root / f"{image_id}.mask.png", mask)
    return replace(dataset, mask_files={i: f"{i}.mask.png" for i in BOXES}, **({} if boxes else {"box_lists": {}}))


def test_the_threshold_of_val_and_the_best_one(context):
    values = scored(context())
    # val has the small box: from 0.5 on the map's is right. a has the large box, right below 0.5, where it has IoU 0.5 above;
    # b has the small one, whose larger box has IoU 0.5 below: >= 0.5 is right
    assert values["units"] == 2 and values["images"] == 2
    assert values["box_acc"] == values["max_box_acc"] == 1 and values["threshold"] == 0
    assert values["threshold_source"] == "best box accuracy on 1 val images"
    assert values["max_box_acc_v2"] == pytest.approx((1 + 1 + 0.5) / 3) and values["iou70"] == 0.5
    # the classes: a's is the second, b's the first
    assert values["top1_cls"] == 0.5 and values["top1_cls_error"] == 0.5 and values["top5_loc"] == 1 and values["top1_loc"] == 0.5
    assert values["five_guesses"] is None and values["pxap"] is None


def test_the_choice_on_val_is_not_the_best_one(context):
    dataset = replace(context.dataset, box_lists={**BOXES, "a": ((0, 4, 2, 24, 13),), "v": ((1, 4, 2, 12, 10),)})
    values = scored(context(dataset))   # a: 200 of 252 pixels with the large box, 100 of 252 with the small one; v: 81 of 100, of 200
    assert values["threshold"] == 0.5 and values["box_acc"] == 0.5 and values["max_box_acc"] == 1
    assert values["oracle"] == {"threshold": 0.0, "box_acc": 1.0} and values["curve"]["box_acc"] == [1] * 5 + [0.5] * 5
    values = scored(context(dataset, threshold=0.25))
    assert values["threshold"] == 0.25 and values["threshold_source"] == "eval_loc.threshold in the configuration"
    assert values["box_acc"] == 1 and len(values["curve"]["threshold"]) == 11
    values = scored(context(replace(dataset, box_lists={i: dataset.box_lists[i] for i in "ab"})))
    assert values["threshold"] == 0.2 and values["threshold_source"] == "fallback of the recipe (no val boxes to choose by)"


def test_the_official_frame_clips_and_truncates(context):
    # at 40 x 60 the map's box ends at 2 * 24 - 1 + 1 = 48, or 47 exactly; the truth ends at int(2 * 23) = 46, so the IoU is less
    official = context(frame=[40, 60], boxes=Boxes.contours, resize=Resize.bicubic, interval=0.001)
    localiser = Localiser(official, np.array([0.1]), Maps(official.input("maps")))
    scores, found = localiser.each("a", SIZE)
    x0, y0, x1, y1 = found[0].boxes[0][0].tolist()
    above = np.argwhere((scores[0] * 255).astype(np.uint8) > 25)
    assert scores.shape == (1, 40, 60) and [x0, y0, x1 - 1, y1 - 1] == [*above.min(0)[::-1], *above.max(0)[::-1]]
    assert scored(official)["max_box_acc"] == 1
    own = Localiser(context(), np.array([0.1]), Maps(official.input("maps")))
    assert own.each("a", SIZE)[1][0].boxes[0].tolist() == [[4, 2, 23, 11]]


def test_boxes_of_masks_and_the_precision_of_pixels(context):
    dataset = with_masks(context.dataset, boxes=False)
    values = scored(context(dataset))
    assert values["units"] == 3 and values["box_acc"] == 1      # class 1 of b: 64 of 100 pixels
    # of a, class 0: 100 right at 1, 100 right at 0.5; of b, class 0: 98 right at 1, two are ignored, 100 wrong at 0.5; class 1: 64 right
    # and 36 wrong at 1
    assert values["pxap"] == pytest.approx(262 / 298 * 262 / 362 + 362 / 498 * 100 / 362)
    assert read_json(context().folder / "scores.json")["truth"] == "boxes of masks"
    values = scored(context(with_masks(context.dataset)))
    assert values["units"] == 2 and values["pxap"] is not None and read_json(context().folder / "scores.json")["truth"] == "boxes"


def test_the_released_program_has_no_threshold_and_five_guesses(context):
    values = scored(context(boxes=Boxes.dt_box))
    assert values["threshold"] is None and values["five_guesses"] is not None and "curve" not in values
    [score] = eval_loc.scores(context().folder)
    assert score.key == "make_cam/boxes" and "five_guesses" in score.measures
    assert [type(piece) for piece in eval_loc.shown(context(boxes=Boxes.dt_box))] == [Table, Table, Column]


def test_a_class_without_any_box(context):
    values = scored(context(replace(context.dataset, box_lists={"a": (), "b": ()})))
    assert values["units"] == 0 and values["box_acc"] is None and "oracle" not in values
    json.dumps(values, allow_nan=False)
    [score] = eval_loc.scores(context().folder)
    assert list(score.measures) == ["box_acc"]


def test_maps_without_predicted_classes_have_no_top_5(context):
    found = context()
    for journal in found.input("maps").glob("journals/*.jsonl"):
        lines = [{key: value for key, value in json.loads(line).items() if key not in ("predicted", "crc")} for line in journal.read_text().splitlines()]
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = scored(found)
    assert values["top1_cls"] is None and values["top5_loc"] is None and values["box_acc"] == 1
    assert "top1_cls" not in eval_loc.scores(found.folder)[0].measures


def test_what_is_scored(context):
    dataset, none = context.dataset, {"scored": (), "val": ()}
    assert context().lists == {"scored": ("a", "b"), "val": ("v",)}
    assert context(threshold=0.3).lists == {"scored": ("a", "b"), "val": ()}
    assert context(boxes=Boxes.dt_box).lists["val"] == ()
    assert context(replace(dataset, box_lists={"v": BOXES["v"]})).lists == {"scored": ("v",), "val": ()}   # boxes of val alone
    assert context(replace(dataset, box_lists={"a": BOXES["a"]})).lists == none
    with pytest.raises(ConfigError, match=r"eval_loc.split='all' is to be scored, but not all of its 3 images have boxes, nor have all of"):
        context(replace(dataset, box_lists={"a": BOXES["a"]}), split="all")
    with pytest.raises(ConfigError, match="eval_loc.split contains 1 images of the list val, on which eval_loc.threshold is chosen"):
        context(split="all")
    assert context(split="val", threshold=0.2).lists["scored"] == ("v",)


@pytest.mark.parametrize("change", [{"threshold": 1.0}, {"threshold": -0.1}, {"interval": 0.0}, {"frame": [224]}, {"frame": [0, 224]}])
def test_settings_that_cannot_be(change):
    with pytest.raises(ConfigError, match=f"eval_loc.{next(iter(change))}=.* is not possible: expected"):
        replace(SETTINGS, **change)


def test_what_is_shown(context):
    found = context(threshold=0.2)
    assert list(eval_loc.shown(found)) == []
    scored(found)
    curve, everything, classes, column = eval_loc.shown(found)
    assert isinstance(curve, Curve) and [line.name or line.kind for line in curve.lines] == ["make_cam", "centre box", "centre Gaussian"]
    assert everything.heads[:3] == ("maps", "threshold", "box accuracy") and everything.rows[0][:3] == ("make_cam", "0.2", "100.0")
    assert [row[0] for row in everything.rows[1:]] == ["centre box", "centre Gaussian"]
    assert classes.rows == [("cat", "2", "100.0", *classes.rows[0][3:])]
    [picture] = column.read("a")
    assert picture.shape == (*SIZE, 3) and {tuple(pixel) for pixel in picture[2, 4:24]} == {eval_loc.FOUND}   # over the true one
    cat, dog = column.read("b")
    assert {tuple(pixel) for pixel in cat[0, :10]} == {eval_loc.FOUND} == {tuple(pixel) for pixel in dog[10, 20:]}
