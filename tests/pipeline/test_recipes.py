"""The recipes: the documents say what the files say, and a switch changes what it says and nothing else."""

import re
from dataclasses import replace
from functools import cache

import pytest
import yaml
from omegaconf import OmegaConf

from pipeline import Pipeline, config
from pipeline.config import compose, typed
from pipeline.order import STEPS, titles
from pipeline.report.published import Published, against
from pipeline.runfolder.summary import score_table
from steps.runtime.context import settings_of
from tests.conftest import ROOT, SMOKE, works
from wsss.errors import ConfigError
from wsss.families import FAMILIES
from wsss.metrics.semantic import MEASURES

RECIPES = ("official", "paper", "clean")
STEP_NAMES = [step.name for step in STEPS if not step.like]   # a second row has the settings of the first
NEEDED = {("backbone", "timm"): ["backbone.network=resnet18"]}   # what a file of conf/ leaves open
METHODS = [(family, path.stem) for family in FAMILIES for path in sorted((ROOT / "conf" / family).glob("*.yaml"))]


def values(*overrides: str) -> dict[str, object]:
    """All settings of the steps, as key -> value, and for each family the chosen file of conf/."""
    found = typed(compose(overrides))
    chosen = {family: name for family, name in METHODS if method(family, name) == getattr(found, family)}
    assert chosen.keys() == FAMILIES.keys()
    return chosen | {key: value for name in STEP_NAMES for key, value in flat(name, settings_of(getattr(found, name)))}


@cache
def method(family: str, name: str) -> object:
    """The method of a file of conf/FAMILY/ alone, without a recipe that could change it; a segmenter's sets other keys, too."""
    config.register()
    if family == "segmenter":
        return OmegaConf.to_object(config._composed("config", [f"segmenter={name}"])[family])
    return OmegaConf.to_object(config._composed(f"{family}/{name}", NEEDED.get((family, name), []))[family])


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
    ("coco14", "irn", "refiner", "walk_irn"),
])
def test_what_a_recipe_does_on_one_data_set(data, recipe, key, value):
    assert values(f"data={data}", "data.root=x", f"recipe={recipe}")[key] == value


@pytest.mark.parametrize(("recipe", "masks"), [("clean", "clean"), ("official", "official"), ("paper", "official"), ("irn", "official")])
def test_the_masks_of_coco_follow_the_recipe(recipe, masks):
    assert typed(compose(["data=coco14", "data.root=x", f"recipe={recipe}"])).data.masks == masks


def test_irn_is_official_but_for_what_the_documents_name():
    official, irn = (values("data=folder", "data.root=x", f"recipe={recipe}") for recipe in ("official", "irn"))
    assert {key: irn[key] for key in irn if irn[key] != official[key]} == {
        "train_cam.freeze_early": True, "cam_to_ir_label.conf_fg": 0.3, "cam_to_ir_label.conf_bg": 0.05,
        "make_sem_seg_labels.bg_threshold": 0.25, "refiner": "walk_irn", "make_ins_seg_labels.pad_to": 512}
    walk, of_irn = method("refiner", "walk_official"), method("refiner", "walk_irn")
    assert of_irn == replace(walk, pad_to=512) and walk == replace(method("refiner", "walk"), scale_steps=False)


@pytest.mark.parametrize("key", [key for key in THREE if not re.search("^cam_to_ir_label|fallback|amn|^affinity_label|^train_psa", key)] + [
    "cam_to_ir_label.conf", "refiner.pad_to", "make_lpcam.prototype_images", "make_lpcam.background_high",
    "make_lpcam.prototype_split", "train_cam.head_lr_mult"])
def test_a_switch_makes_its_own_step_stale_and_no_step_before_it(smoke_outputs, key):
    """Every result before the switch's step stays; of the settings of the step only this one changed."""
    section = key.split(".")[0]
    step = {"refiner": "make_sem_seg_labels", "backbone": "train_cam"}.get(section, section)
    overrides = {
        "cam_to_ir_label.conf": ["cam_to_ir_label.conf_fg=0.45", "cam_to_ir_label.conf_bg=0.25"],
        "refiner.pad_to": ["refiner.pad_to=512"],
        "refiner": ["refiner=walk_official"],   # the run has walk
        "backbone": ["backbone=resnet18", "backbone.pretrained=false"],   # the run has tiny
        "train_cam.head_lr_mult": ["train_cam.head_lr_mult=10.0"],
        "make_lpcam.prototype_images": ["make_lpcam.prototype_images=5"],
        "make_lpcam.background_high": ["make_lpcam.background_high=0.5"],
        "make_lpcam.prototype_split": ["make_lpcam.prototype_split=val"],
    }.get(key)
    if overrides is None:
        now = values(*SMOKE)[key]
        other = next(cell for cell in THREE[key] if cell not in (now, None))   # of another recipe
        overrides = [f"{key}={str(other).lower()}"]
    stale = works(Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", *overrides, "replace=true"))
    assert next(iter(stale)) == step
    for name in STEP_NAMES[:STEP_NAMES.index(step)]:
        assert name not in stale
    changed = {reason.split(":")[0] for reason in stale[step].split("; ") if reason.startswith(f"{section}.")}
    presets = {"refiner": {"refiner.scale_steps"}, "backbone": {"backbone.depth"}}   # what another file of conf/ changes
    assert changed == (presets[key] if key in presets else
                       {override.split("=")[0] for override in overrides} - {"make_lpcam.prototype_split"})   # a list counts by its content
    assert key != "make_lpcam.prototype_split" or "of prototypes changed" in stale[step]


MEASURED = {kind: {"title": titles()[kind], "measures": MEASURES, "columns": {}, **values} for kind, values in {
    "make_cam": {"miou": 0.481, "fp": 0.265, "fn": None, "images": 1464}, "make_lpcam": {"miou": 0.52, "images": 1464},
    "make_sem_seg_labels": {"miou": 0.6, "images": 1464}}.items()}
SCORES = {"make_sem_seg_labels": {"miou": 71.2}, "make_lpcam": {"miou": 54.9}, "make_cam": {"miou": 48.8, "fp": 26.5, "fn": 26.2}}


def published(**changes) -> Published:
    return Published(**{"source": "a paper", "images": 1464, "tolerance": 1.5, "scores": SCORES, **changes})


def test_published_scores_are_compared_in_the_order_of_the_steps():
    result = against(published(), MEASURED)
    assert [(row["of"], row["score"], row["difference"], row["within"]) for row in result["rows"]] == [
        ("make_cam", "miou", -0.7, True), ("make_cam", "fp", 0.0, True), ("make_lpcam", "miou", -2.9, False),
        ("make_sem_seg_labels", "miou", -11.2, False)]
    assert result["first_outside"] == "make_lpcam" and result["not_comparable"] == {}

    result = against(published(images=10582), MEASURED)
    assert result["rows"] == [] and list(result["not_comparable"].values()) == [["CAM", "LPCAM", "pseudo masks"]] and result["first_outside"] is None


def test_scores_of_every_step_can_be_published():
    """Also those of maps in a sub-folder, and of instances, which have measures of their own."""
    both = published(scores={"make_ins_seg_labels": {"ap": 50.0, "ap50": 40.0}, "make_lpcam_fg_only": {"precision": 61.3}})
    measured = {"make_lpcam_fg_only": {"title": "LPCAM-F", "precision": 0.5, "images": 1464},
                "make_ins_seg_labels": {"title": "instances", "ap": 0.5, "images": 1464}}   # without COCO's measures
    result = against(both, measured)
    assert [(row["of"], row["step"], row["title"], row["score"], row["difference"]) for row in result["rows"]] == [
        ("make_lpcam_fg_only", "make_lpcam", "LPCAM-F", "precision", -11.3), ("make_ins_seg_labels", "make_ins_seg_labels", "instances", "ap", 0.0)]
    assert result["first_outside"] == "make_lpcam"


def test_the_summary_shows_the_published_scores_and_the_first_step_outside():
    def score(kind, miou):
        return {**MEASURED[kind], "miou": miou, "fp": 0.3, "fn": 0.2, "precision": 0.6, "recall": 0.7, "threshold": 0.3,
                "threshold_source": "eval_cam.threshold.make_cam in the configuration"}
    measured = {kind: score(kind, miou) for kind, miou in (("make_cam", 0.488), ("make_lpcam", 0.4), ("make_sem_seg_labels", 0.7))}
    summary = {"scores": measured, "unscored": {}}
    text = score_table({**summary, "published": against(published(), measured)})
    assert re.search(r"CAM +mIoU +48.8 +48.8 +\+0.0\n", text)
    assert re.search(r"LPCAM +mIoU +54.9 +40.0 +-14.9 +outside\n", text)
    assert "the first step outside is make_cam" in text   # fp of CAM: 30.0 instead of 26.5
    text = score_table({**summary, "published": against(published(images=2), measured)})
    assert "are of 2 images, here 1,464 were scored: no comparison" in text


ROOTED = ("voc12", "coco14", "folder_seg", "folder_seg_bound", "folder_loc", "_deeplab", "_upernet", "_cub", "_openimages", "_ilsvrc")   # of a data set that has no default folder
EVERY_CHOICE = sorted(f"{group}={path.stem}" for group in ("recipe", "experiment") for path in (ROOT / f"conf/{group}").glob("*.yaml")
                      if path.stem != "base")


@pytest.mark.parametrize("choice", EVERY_CHOICE)
def test_methods_go_with_every_recipe_and_experiment(choice):
    """They choose methods and set none of their keys. One method of each family at a time, a sixteenth of those of a family: each
    method is tried with some of the recipes and experiments."""
    group, _, name = choice.partition("=")
    assert not FAMILIES.keys() & yaml.safe_load((ROOT / f"conf/{group}/{name}.yaml").read_text()).keys()
    methods = {family: [name for each, name in METHODS if each == family] for family in FAMILIES}
    for number in range(EVERY_CHOICE.index(choice) % 16, max(map(len, methods.values())), 16):
        chosen = {family: names[number % len(names)] for family, names in methods.items()}
        needed = [word for each in chosen.items() for word in NEEDED.get(each, [])]
        words = [f"{family}={name}" for family, name in chosen.items()]
        found = typed(compose([*words, choice, *needed, *(["data.root=x"] if choice.endswith(ROOTED) else [])]))
        for family, name in chosen.items():
            assert getattr(found, family) == method(family, name), (family, name)


@pytest.mark.parametrize("choice", EVERY_CHOICE)
def test_every_recipe_and_experiment_has_a_threshold_without_val_masks(choice):
    """The maps of the two papers can be scored, and be seeds, on any data: where the recipe has no official value, by the rule."""
    words = (choice, *(["data.root=x"] if choice.endswith(ROOTED) else []))
    found = values(*words)
    seeds, kinds = ("make_cam", "make_lpcam"), ("make_cam", "make_lpcam_fg_only", "make_lpcam")
    if compose(words).recipe_name not in ("official", "paper", "irn", "edam"):
        assert {value for key, value in found.items() if ".fallback." in key} == {None}
        return
    assert all(0 < found[f"eval_cam.fallback.{kind}"] < 1 for kind in kinds)
    assert all(0 < found[f"cam_to_ir_label.fallback.{kind}.conf_bg"] < found[f"eval_cam.fallback.{kind}"]
               < found[f"cam_to_ir_label.fallback.{kind}.conf_fg"] < 1 for kind in seeds)


@pytest.mark.parametrize("experiment", ["lpcam_voc12", "irn_voc12", "lpcam_coco14", "irn_coco14", "lpcam_voc12_deeplab", "irn_voc12_deeplab",
                                        "lpcam_coco14_upernet"])
def test_the_experiments_of_the_papers_carry_their_scores(experiment):
    found = typed(compose([f"experiment={experiment}", "data.root=x"]))
    assert found.run_name == experiment and found.backbone.pretrained
    assert found.published.scores["make_sem_seg_labels"]["miou"] == {
        "lpcam_voc12": 71.2, "irn_voc12": 66.5, "lpcam_coco14": 46.8, "irn_coco14": 42.5}["_".join(experiment.split("_")[:2])]
    assert found.published.images == {"voc12": 1464, "coco14": 82783}[found.data.kind]
    assert ("make_lpcam" in found.steps) == experiment.startswith("lpcam")


@pytest.mark.parametrize(("changes", "message"), [
    ({"scores": {"make_lpcan": {"miou": 1.0}}}, r"published.scores='make_lpcan' is not possible: expected one of make_cam, (.*, )?make_lpcam_fg_only, "
                                               r"make_lpcam, (.*, )?make_sem_seg_labels, (.*, )?make_ins_seg_labels; did you mean 'make_lpcam'\?"),
    ({"scores": {"make_cam": {"iou": 1.0}}}, r"published.scores.make_cam='iou' is not possible: expected one of miou, fp, fn, precision, "
                                             r"recall, (.*, )?ap, ap50, coco_ap(, .*)?; did you mean 'miou'\?"),
    ({"scores": {"make_cam": {"miou": 488.0}}}, "published.scores.make_cam.miou=488.0 is not possible: expected percent, from 0 to 100"),
    ({"images": 0}, "published.images=0"), ({"tolerance": -1.0}, "published.tolerance=-1.0")])
def test_impossible_published_scores_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        published(**changes)
