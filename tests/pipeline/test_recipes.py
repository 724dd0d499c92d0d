"""The recipes: the documents say what the files say, and a switch changes what it says and nothing else."""

import re

import pytest
import yaml

from pipeline import Pipeline
from pipeline.config import compose, typed
from pipeline.order import STEPS
from pipeline.report.published import Published, against
from pipeline.runfolder.summary import score_table
from steps.runtime.context import settings_of
from tests.conftest import ROOT, SMOKE
from wsss.errors import ConfigError

RECIPES = ("official", "paper", "clean")
STEP_NAMES = [step.name for step in STEPS]


def values(*overrides: str) -> dict[str, object]:
    """All settings of the steps, as key -> value."""
    config = typed(compose(overrides))
    return {key: value for name in STEP_NAMES for key, value in flat(name, settings_of(getattr(config, name)))}


def flat(key: str, value: object):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flat(f"{key}.{name}", inner)
    else:
        yield key, value


def table(heading: str) -> dict[str, tuple[object, ...]]:
    """The rows of the table of docs/recipes.md that has this heading: key -> its values, without the last column, the words."""
    lines = (ROOT / "docs/recipes.md").read_text().splitlines()
    start = lines.index(heading) + 2
    rows = {}
    for line in lines[start:]:
        if not line.startswith("| `"):
            break
        key, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[key.strip("` ")] = tuple(number(cell) for cell in cells[:-1])
    return rows


def number(cell: str) -> object:
    value = yaml.safe_load(cell) if cell else None
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-\d+", value) else value


THREE = table("| key | official | paper | clean | |")
TWO = table("| key | VOC 2012 | COCO 2014 | source |")


def test_the_table_of_the_three_recipes_is_complete_and_true():
    composed = [values("data=folder", "data.root=x", f"recipe={recipe}") for recipe in RECIPES]
    differing = {key for key in composed[0] if len({str(each[key]) for each in composed}) > 1}
    assert set(THREE) == differing
    for key, cells in THREE.items():
        assert [each[key] for each in composed] == list(cells), key


def test_the_table_of_the_data_sets_is_true():
    voc, coco = (values(f"experiment=lpcam_{name}", "data.root=x") for name in ("voc12", "coco14"))
    differing = {key for key in voc if voc[key] != coco[key]}
    assert set(TWO) == differing
    for key, cells in TWO.items():
        assert (voc[key], coco[key]) == cells, key


@pytest.mark.parametrize(("data", "recipe", "key", "value"), [
    ("voc12", "paper", "make_lpcam.prototype_split", "train_aug"),
    ("voc12", "clean", "make_lpcam.prototype_split", "train"),
    ("coco14", "paper", "make_lpcam.prototype_images", None),
    ("coco14", "clean", "make_lpcam.prototype_images", None),
    ("coco14", "clean", "make_lpcam.n_clusters", 20),
    ("coco14", "irn", "make_sem_seg_labels.pad_to", 512),
])
def test_what_a_recipe_does_on_one_data_set(data, recipe, key, value):
    assert values(f"data={data}", "data.root=x", f"recipe={recipe}")[key] == value


@pytest.mark.parametrize(("recipe", "masks"), [("clean", "clean"), ("official", "official"), ("paper", "official"), ("irn", "official")])
def test_the_masks_of_coco_follow_the_recipe(recipe, masks):
    assert typed(compose(["data=coco14", "data.root=x", f"recipe={recipe}"])).data.masks == masks


def test_irn_is_official_but_for_what_the_documents_name():
    official, irn = (values("data=folder", "data.root=x", f"recipe={recipe}") for recipe in ("official", "irn"))
    assert {key: irn[key] for key in irn if irn[key] != official[key]} == {
        "train_cam.detach_after_layer2": True, "cam_to_ir_label.conf_fg": 0.3, "cam_to_ir_label.conf_bg": 0.05,
        "make_sem_seg_labels.bg_threshold": 0.25, "make_sem_seg_labels.pad_to": 512,
        "make_ins_seg_labels.pad_to": 512}   # it follows make_sem_seg_labels


@pytest.mark.parametrize("key", [key for key in THREE if not key.startswith("cam_to_ir_label")] + [
    "cam_to_ir_label.conf", "make_sem_seg_labels.pad_to", "make_lpcam.prototype_images", "make_lpcam.background_high",
    "make_lpcam.prototype_split", "train_cam.head_lr_mult"])
def test_a_switch_makes_its_own_step_stale_and_no_step_before_it(smoke_outputs, key):
    """Every result before the switch's step stays; of the settings of the step only this one changed."""
    step = key.split(".")[0]
    overrides = {
        "cam_to_ir_label.conf": ["cam_to_ir_label.conf_fg=0.45", "cam_to_ir_label.conf_bg=0.25"],
        "make_sem_seg_labels.pad_to": ["make_sem_seg_labels.pad_to=512"],
        "make_sem_seg_labels.refiner": ["make_sem_seg_labels.refiner=crf"],   # the recipes have walk, as the run has, and null
        "train_cam.head_lr_mult": ["train_cam.head_lr_mult=10.0"],
        "make_lpcam.prototype_images": ["make_lpcam.prototype_images=5"],
        "make_lpcam.background_high": ["make_lpcam.background_high=0.5"],
        "make_lpcam.prototype_split": ["make_lpcam.prototype_split=val"],
    }.get(key)
    if overrides is None:
        now = values(*SMOKE)[key]
        other = next(cell for cell in THREE[key] if cell not in (now, None))   # of another recipe
        overrides = [f"{key}={str(other).lower()}"]
    plan = Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", *overrides, "replace=true").plan()
    stale = {planned.name: planned.why for planned in plan if planned.works}
    assert next(iter(stale)) == step
    for name in STEP_NAMES[:STEP_NAMES.index(step)]:
        assert name not in stale
    changed = {reason.split(":")[0] for reason in stale[step].split("; ") if reason.startswith(f"{step}.")}
    assert changed == {override.split("=")[0] for override in overrides} - {"make_lpcam.prototype_split"}   # a list counts by its content
    assert key != "make_lpcam.prototype_split" or "of prototypes changed" in stale[step]


MEASURED = {"cam": {"miou": 0.481, "fp": 0.265, "fn": None, "images": 1464}, "lpcam": {"miou": 0.52, "images": 1464},
            "pseudo_masks": {"miou": 0.6, "images": 1464}}


def published(**changes) -> Published:
    scores = {"pseudo_masks": {"miou": 71.2}, "lpcam": {"miou": 54.9}, "cam": {"miou": 48.8, "fp": 26.5, "fn": 26.2}}
    return Published(**{"source": "a paper", "images": 1464, "tolerance": 1.5, "scores": scores, **changes})


def test_published_scores_are_compared_in_the_order_of_the_steps():
    result = against(published(), MEASURED)
    assert [(row["of"], row["score"], row["difference"], row["within"]) for row in result["rows"]] == [
        ("cam", "miou", -0.7, True), ("cam", "fp", 0.0, True), ("lpcam", "miou", -2.9, False),
        ("pseudo_masks", "miou", -11.2, False)]
    assert result["first_outside"] == "make_lpcam" and result["not_comparable"] is None

    result = against(published(images=10582), MEASURED)
    assert result["rows"] == [] and result["not_comparable"] == 1464 and result["first_outside"] is None


def test_the_summary_shows_the_published_scores_and_the_first_step_outside():
    def score(miou, images=1464):
        return {"miou": miou, "fp": 0.3, "fn": 0.2, "precision": 0.6, "recall": 0.7, "threshold": 0.3, "images": images,
                "threshold_source": "eval_cam.threshold.cam in the configuration"}
    summary = {"eval_cam": {"cam": score(0.488), "lpcam": score(0.4)}, "eval_sem_seg": score(0.7)}
    measured = {**summary["eval_cam"], "pseudo_masks": summary["eval_sem_seg"]}
    text = score_table({**summary, "published": against(published(), measured)})
    assert re.search(r"CAM +mIoU +48.8 +48.8 +\+0.0\n", text)
    assert re.search(r"LPCAM +mIoU +54.9 +40.0 +-14.9 +outside\n", text)
    assert "the first step outside is make_cam" in text   # fp of CAM: 30.0 instead of 26.5
    text = score_table({**summary, "published": against(published(images=2), measured)})
    assert "are of 2 images, here 1,464 were scored: no comparison" in text


@pytest.mark.parametrize("experiment", ["lpcam_voc12", "irn_voc12", "lpcam_coco14", "irn_coco14"])
def test_the_experiments_of_the_papers_carry_their_scores(experiment):
    config = typed(compose([f"experiment={experiment}", "data.root=x"]))
    assert config.run_name == experiment and config.model.pretrained
    assert config.published.scores["pseudo_masks"]["miou"] == {
        "lpcam_voc12": 71.2, "irn_voc12": 66.5, "lpcam_coco14": 46.8, "irn_coco14": 42.5}[experiment]
    assert config.published.images == {"voc12": 1464, "coco14": 82783}[config.data.kind]
    assert ("make_lpcam" in config.steps) == experiment.startswith("lpcam")


@pytest.mark.parametrize(("changes", "message"), [
    ({"scores": {"lpcan": {"miou": 1.0}}}, "published.scores='lpcan' is not possible: expected one of cam"),
    ({"scores": {"cam": {"iou": 1.0}}}, "published.scores.cam='iou'"),
    ({"scores": {"cam": {"miou": 488.0}}}, "percent"),
    ({"images": 0}, "published.images=0"), ({"tolerance": -1.0}, "published.tolerance=-1.0")])
def test_impossible_published_scores_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        published(**changes)
