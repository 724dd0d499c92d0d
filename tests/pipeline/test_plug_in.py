"""A new step is one file in steps/, one row in pipeline/order.py and one block of values in conf/; a new method of a family is one
file in its package and one in conf/. Nothing else knows of them."""

import json
import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
from torch.nn.functional import avg_pool2d

from steps.runtime.artifacts import Maps
from tests import processes
from tests.conftest import ROOT, SMOKE, copied

STEP = '''
    """Invert the CAMs: 1 - x."""

    from dataclasses import dataclass

    from steps.runtime.artifacts import Maps, encode_array
    from steps.runtime.inference import for_each_image
    from steps.parts.pieces import Column
    from steps.step import IMAGES, StepSettings

    VERSION = 1
    KIND = IMAGES
    MAPS = {"": "inverted"}


    @dataclass
    class Settings(StepSettings):
        split: str | None


    def run(context):
        cams = Maps(context.input("cams"))

        def make(image_id):
            facts = cams.facts(image_id)
            return ({f"{image_id}.npy": encode_array(1 - cams.packed(image_id))},
                    {name: facts[name] for name in ("height", "width", "classes", "grids", "pad", "range")})
        for_each_image(context, make)
        return {}


    def reader(folder, n_classes):
        return Maps(folder).packed
    '''
SHOWN = '''

    def shown(context):
        maps = Maps(context.folder)
        return [Column("one minus CAM", "maps", context.ids, lambda image_id: maps.at(image_id, "full").numpy())]
    '''
ROWS = {"make_lpcam": 'Row("make_inverted", "1 - CAM", {"cams": "make_cam"}),', "cam_to_ir_label":
        'Row("cam_to_ir_label", "second labels", {"seeds": SEEDS, "thresholds": "eval_cam"}, name="second_ir_label"),'}
STEPS = ("train_cam", "make_cam", "make_lpcam", "make_inverted", "eval_cam", "cam_to_ir_label", "second_ir_label", "train_irn",
         "make_sem_seg_labels", "eval_sem_seg")
CHOSEN = f"steps=[{','.join(STEPS)}]"
USUAL = f"steps=[{','.join(name for name in STEPS if name not in ('make_inverted', 'second_ir_label'))}]"
METHOD = '''
    """The brightness of the image."""

    from dataclasses import dataclass

    from wsss.cams.method import CamMethod


    @dataclass
    class Grey(CamMethod):
        gain: float

        def maps(self, net, features_of, pair, classes):
            from torch.nn.functional import avg_pool2d

            grey = avg_pool2d(pair.mean(1, keepdim=True), 16, ceil_mode=True)   # (2, 1, h, w)
            return (self.gain * grey).relu().expand(-1, len(classes), -1, -1)


    Method = Grey
    '''
GREY, CONF = "defaults: [/schema/cam@_here_: grey, _self_]", {   # the files of conf/cam/
    "grey": "{GREY}\ngain: 1.0\n", "grey_again": "{GREY}\ngain: 1.0\n", "loud": "defaults: [grey, _self_]\ngain: 2.0\n",
    "broken": "defaults: [/schema/cam@_here_: broken, _self_]\n", "nameless": "gain: 1.0\n"}
PLANS = """
import json, sys
from pipeline import Pipeline
from wsss.errors import WsssError

def planned(words):
    try:
        return {step.name: [step.action, step.to_do, step.why] for step in Pipeline.compose(*words).plan()}
    except WsssError as error:
        return str(error)
print(json.dumps([planned(words) for words in json.loads(sys.argv[1])]))
"""


def call(tree: Path, *words: str, chosen: tuple[str, ...] = (CHOSEN,)) -> str:
    """What run_pipeline.py of a tree prints."""
    result = processes.run("run_pipeline.py", *SMOKE, *chosen, *words, cwd=tree)
    assert result.returncode == 0, result.stderr
    return result.stdout


ACTS = """
import json, sys
from pipeline import Pipeline
from pipeline.commandline import act
for words in json.loads(sys.argv[1]):
    assert act(Pipeline.compose(*words)) == 0, words
"""


def acts(tree: Path, *calls: tuple[str, ...], chosen: tuple[str, ...] = (CHOSEN,)) -> str:
    """What `call` prints with each list of words; all by one process."""
    words = json.dumps([[*SMOKE, *chosen, *more] for more in calls])
    result = processes.run("-c", ACTS, words, cwd=tree)
    assert result.returncode == 0, result.stderr
    return result.stdout


def plans(tree: Path, *calls: tuple[str, ...], chosen: tuple[str, ...] = (CHOSEN,)) -> list:
    """For each list of words the plan, step -> [action, to do, why], or the error; all by one process."""
    words = json.dumps([[*SMOKE, *chosen, *more] for more in calls])
    result = processes.run("-c", PLANS, words, cwd=tree)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def copy_code(source: Path, target: Path) -> None:
    for name in ("pipeline", "steps", "wsss", "conf"):
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "run_pipeline.py", target)


@pytest.fixture(scope="module")
def tree(made_once, smoke_outputs):
    """A copy of the tree with a new step, a second row of an old one and new methods; `outputs` has a finished run, continued with them. Tests
    only read it."""
    def make(tree: Path) -> None:
        copy_code(ROOT, tree)
        (tree / "steps/make_inverted.py").write_text(textwrap.dedent(STEP + SHOWN))
        (tree / "wsss/cams/grey.py").write_text(textwrap.dedent(METHOD))
        (tree / "wsss/cams/broken.py").write_text("import nowhere\n\nMethod = nowhere.Method\n")
        for name, content in CONF.items():
            (tree / f"conf/cam/{name}.yaml").write_text(f"# @package cam\n{content.replace('{GREY}', GREY)}")
        (tree / "conf/recipe/loud.yaml").write_text("# @package _global_\ndefaults: [clean, override /cam: loud, _self_]\n")
        order = (tree / "pipeline/order.py").read_text()
        for name, row in ROWS.items():
            order, found = re.subn(rf'(\n    Row\("{name}", .*\n)', rf"\1    {row}\n", order, count=1)   # after the first of its rows
            assert found == 1
        (tree / "pipeline/order.py").write_text(order)
        with (tree / "conf/recipe/base.yaml").open("a") as values:   # the second row has the values of the first
            values.write("\nmake_inverted: {split: null}\nsecond_ir_label: {crf_iterations: 9}\n")
        copied(smoke_outputs, tree / "outputs")
        (tree / "plan.txt").write_text(call(tree, "action=plan"))
        (tree / "run.txt").write_text(call(tree, "report.write=true"))
    return made_once("tree", make)


def test_the_plan_has_the_new_steps(tree):
    plan = (tree / "plan.txt").read_text()
    rows = {row[0]: row[1:] for line in plan.splitlines() if len(row := re.split(r"  +", line.strip())) > 1}
    assert rows["make_inverted"] == ["run", "32 images", "?", "?", "?"]   # it does not say what it needs
    assert rows["second_ir_label"][:3] == ["run", "24 images", "?"] and rows["second_ir_label"][3].endswith(" kB")
    assert rows["eval_cam"][0] == "re-run" and rows["eval_cam"][-1].endswith("make_inverted now read")
    works = {name for name, row in rows.items() if row[0] in ("run", "re-run", "continue")}
    assert works == {"make_inverted", "eval_cam", "second_ir_label"}   # the labels read a threshold that is as before
    assert ", disk and memory of 1 step unknown" in plan


def test_its_maps_are_made_and_scored_beside_the_others(tree):
    scores = json.loads((tree / "outputs/smoke/summary.json").read_text())["scores"]
    assert list(scores) == ["make_cam", "make_lpcam_fg_only", "make_lpcam", "make_inverted", "make_sem_seg_labels"]
    assert scores["make_inverted"]["title"] == "inverted" and scores["make_inverted"]["miou"] != scores["make_cam"]["miou"]
    table = [re.split(r"  +", line.strip()) for line in (tree / "run.txt").read_text().splitlines()]
    for kind, title in (("make_cam", "CAM"), ("make_inverted", "inverted")):
        assert [row[1] for row in table if row[0] == title] == [f"{100 * scores[kind]['miou']:.1f}"]
    for file in (tree / "outputs/smoke/make_cam").glob("*.npy"):
        assert np.array_equal(np.load(tree / "outputs/smoke/make_inverted" / file.name), 1 - np.load(file))


def test_a_second_row_of_a_module_makes_its_own_labels(tree):
    first, second = (tree / "outputs/smoke" / name for name in ("cam_to_ir_label", "second_ir_label"))
    files = sorted(path.name for path in second.glob("*.png"))
    assert len(files) == 24 and sorted(path.name for path in first.glob("*.png")) == files
    settings = [json.loads((folder / "manifest.json").read_text())["settings"] for folder in (first, second)]
    for own in settings:
        assert own.pop("fallback")["make_lpcam"] == {"conf_fg": None, "conf_bg": None}   # without the kinds of later rows in the first
    assert settings[1] == {**settings[0], "crf_iterations": 9} and settings[0]["crf_iterations"] == 10


def test_the_report_has_its_title_and_what_it_shows(tree, tmp_path):
    report = (tree / "outputs/smoke/report/report.html").read_text()
    assert ">inverted<" in report and "one minus CAM" in report
    copy_code(tree, tmp_path)
    (tmp_path / "steps/make_inverted.py").write_text(textwrap.dedent(STEP))
    copied(tree / "outputs", tmp_path / "outputs")
    call(tmp_path, "action=report")
    report = (tmp_path / "outputs/smoke/report/report.html").read_text()
    assert ">inverted<" in report and "one minus CAM" not in report


def test_status_and_verify(tree):
    status, verify = call(tree, "action=status"), call(tree, "action=verify")
    assert re.search(r"\n  make_inverted +done +32 images +finished ", status)
    assert re.search(r"\n  second_ir_label +done +24 images +finished ", status)
    assert re.search(r"\n  make_inverted +33 files read, 0 broken\n", verify)


def test_only_a_missing_image_is_made_again(tree, tmp_path):
    outputs = f"outputs={copied(tree / 'outputs', tmp_path)}"
    lost, *others = sorted((tmp_path / "smoke/make_inverted").glob("*.npy"))
    content, before = lost.read_bytes(), [path.stat().st_mtime_ns for path in others]
    lost.unlink()
    whole, marked, forced = plans(tree, (outputs,), (outputs, "make_inverted_pass=true"),
                                  (outputs, "from_step=make_inverted", "force=true", "replace=true"))
    assert {name: step for name, step in whole.items() if step[1]} == {"make_inverted": ["continue", 1, "1 artifact broken"]} == {
        name: step for name, step in marked.items() if step[1]}
    assert [name for name, (action, *_) in forced.items() if action == "re-run"] == list(STEPS[3:])
    call(tree, outputs, "make_inverted_pass=true")
    assert lost.read_bytes() == content and [path.stat().st_mtime_ns for path in others] == before


def test_its_keys_and_their_misspellings(tree):
    words = ("from_step=make_inverte", "make_inverted_pas=true", "eval_cam.threshold.make_inverted=0.3",
             "eval_cam.threshold.make_invertd=0.3", "second_ir_label.conf_fg=2", "second_ir_label.gt_prob=2", "seed_maps=second_ir_label")
    step, flag, threshold, kind, pair, prob, seeds = plans(tree, *((word,) for word in words))
    assert "from_step: there is no step 'make_inverte'; did you mean 'make_inverted'?" in step
    assert "make_inverted_pas: there is no such key; did you mean 'make_inverted_pass'?" in flag
    assert threshold["eval_cam"][0] == "re-run" and threshold["cam_to_ir_label"][0] == "skip"
    assert ("eval_cam.threshold.make_invertd: there is no such key; did you mean 'make_inverted'? (allowed here: make_cam, "
            "make_lpcam_fg_only, make_lpcam, make_inverted, imported, make_amn, make_amn_lpcam_fg_only, make_amn_lpcam)") in kind
    assert pair.startswith("second_ir_label.conf_fg, conf_bg=(2.0, None) is not possible")
    assert prob.startswith("second_ir_label.gt_prob=2.0 is not possible")
    assert "a step of this experiment before second_ir_label that makes maps (make_cam, make_lpcam, make_inverted)" in seeds


def test_its_maps_can_be_the_seeds(tree, tmp_path):
    """The results that do not depend on it are those of the first run; no network is trained."""
    made = call(tree, f"outputs={tmp_path}", f"data.root={tree / 'outputs/.data'}", f"reuse_from=[{tree / 'outputs/smoke'}]",
                "seed_maps=make_inverted", "refiner=none")
    assert re.search(r"\n  train_irn +left out +no step reads it with refiner=none\n", made)
    manifest = json.loads((tmp_path / "smoke/make_sem_seg_labels/manifest.json").read_text())
    assert list(manifest["identity"]["reads"]) == ["make_inverted"]
    masks, usual = ({path.name: path.read_bytes() for path in (folder / "smoke/make_sem_seg_labels").glob("*.png")}
                    for folder in (tmp_path, tree / "outputs"))
    assert masks.keys() == usual.keys() and masks != usual


@pytest.fixture(scope="module")
def grey(tree, made_once):
    """`outputs` with the finished run `grey`, made with `cam=grey` up to the scores of the maps, and what later calls, with another
    method, made of it: `compare`, `status` and a prediction."""
    def make(folder: Path) -> None:
        copied(tree / "outputs", folder / "outputs")
        there = f"outputs={folder / 'outputs'}"
        image = next((folder / "outputs/.data").glob("*/images/train_0001.*"))
        (folder / "said.txt").write_text(acts(
            tree, (there, "name=grey", "cam=grey", "reuse_from=[smoke]", "to_step=eval_cam", "report.write=true"),
            (there, "action=compare", "runs=[smoke,grey]"),
            (there, "name=grey", "action=predict", f"image={image}", "class_threshold=0", "cam=loud")))
    return made_once("grey", make)


def test_another_method_makes_the_maps_again_and_says_why(tree):
    """Also by a recipe; the command line wins."""
    smoke, by_name, loud, chosen, of_recipe = plans(tree, *((*words, "to_step=eval_cam") for words in (
        (), ("recipe=loud", "cam=cam"), ("cam=loud",), ("cam=grey", "cam.gain=3"), ("recipe=loud",))))
    assert {step[0] for step in smoke.values()} == {"skip"} and by_name == smoke
    for found, gain in ((loud, 2.0), (chosen, 3.0), (of_recipe, 2.0)):
        assert found["make_cam"] == ["re-run", 32, f"cam: cam -> grey; cam.gain: null -> {gain}"]
        assert found["train_cam"][0] == "skip" and found["make_lpcam"] == ["re-run", 32, "make_cam changed"]


def test_a_method_counts_by_its_module_and_settings_and_not_by_the_name_of_its_file_in_conf(tree, grey):
    run = (f"outputs={grey / 'outputs'}", "name=grey", "to_step=eval_cam")
    again, other, louder, cam = (found["make_cam"] for found in plans(
        tree, *((*run, *words) for words in (("cam=grey",), ("cam=grey_again",), ("cam=loud",), ("cam=cam",)))))
    assert again[0] == other[0] == "skip"
    assert louder == ["re-run", 32, "cam.gain: 1.0 -> 2.0"]
    assert cam == ["re-run", 32, "cam: grey -> cam; cam.gain: 1.0 -> null"]
    manifest = json.loads((grey / "outputs/grey/make_cam/manifest.json").read_text())
    assert manifest["identity"]["cam"] == {"method": "grey", "gain": 1.0}


def test_the_maps_of_a_method_have_its_name(grey):
    scores = {name: json.loads((grey / f"outputs/{name}/summary.json").read_text())["scores"] for name in ("smoke", "grey")}
    assert scores["grey"]["make_cam"]["title"] == "grey" and scores["smoke"]["make_cam"]["title"] == "CAM"
    assert scores["grey"]["make_cam"]["miou"] != scores["smoke"]["make_cam"]["miou"]
    report = (grey / "outputs/grey/report/report.html").read_text()
    assert "<dt>cam</dt><dd>grey, gain=1.0</dd>" in report and ">grey<" in report and ">CAM<" not in report
    compared = [re.split(r"  +", line.strip()) for line in (grey / "said.txt").read_text().splitlines()]
    assert "CAM / grey" in {row[0] for row in compared}
    assert ["cam.method", "cam", "grey"] in compared and ["cam.gain", "–", "1.0"] in compared


def test_a_prediction_uses_the_method_of_the_run(grey):
    maps = next((grey / "outputs/grey/predictions").glob("train_0001.*/make_cam.npy"))
    assert len(each := np.load(maps)) > 1 and each.max() == 1 and all(np.array_equal(one, each[0]) for one in each)


def test_a_missing_map_of_a_method_is_made_again(tree, grey, tmp_path):
    run = (f"outputs={copied(grey / 'outputs', tmp_path)}", "name=grey", "cam=grey", "to_step=eval_cam")
    lost = min((tmp_path / "grey/make_cam").glob("*.npy"))
    content = lost.read_bytes()
    lost.unlink()
    assert plans(tree, run)[0]["make_cam"] == ["continue", 1, "1 artifact broken"]
    call(tree, *run)
    assert lost.read_bytes() == content


def test_the_keys_of_a_method_and_their_misspellings(tree):
    words = ("cam=gray", ("cam=grey", "cam.gian=1"), ("cam=grey", "cam.gain=much"), "cam=cam cam.gain=1".split(), ("cam=grey", "cam.method=cam"),
             "cam=broken", "cam=nameless", "cam=cam")
    name, key, value, other, method, broken, nameless, cam = plans(tree, *((each,) if isinstance(each, str) else tuple(each) for each in words))
    assert name == "cam=gray: there is no such option; did you mean 'grey'? (allowed: backprop, broken, cam, edam, eigencam, gradcam, gradcam_pp, grey, grey_again, guided_backprop, guided_gradcam, hirescam, iscam, iscam_fcam, layercam, legrad, loud, mctformer, nameless, occlusion, rollout, scorecam, scorecam_fcam, signed_cam, smooth_gradcam_pp, smooth_gradcam_pp_fcam, sscam, sscam_fcam, xgradcam)"
    assert key == "cam.gian: there is no such key; did you mean 'gain'? (allowed here: gain)"
    assert value == "cam.gain: Value 'much' of type 'str' could not be converted to Float"
    assert other == "cam.gain: there is no such key (allowed here: none)"
    assert method == "cam.method='cam' is not possible: expected grey; choose the method by cam=NAME"
    assert broken == (f"cam: {tree / 'wsss/cams/broken.py'} cannot be imported (ModuleNotFoundError: No module named 'nowhere'). Correct "
                      "the file, or choose another method by cam=NAME")
    assert nameless.startswith("cam={'gain': 1.0} is not possible: expected a file of conf/cam/ that names its method")
    assert cam["make_cam"][0] == "skip"   # no other method is broken


REFINER = '''
    """The mean of the seed maps over windows."""

    from dataclasses import dataclass

    from wsss.refiners.method import RefinerMethod


    @dataclass
    class Blur(RefinerMethod):
        window: int   # odd, in cells of stride 4

        def maps(self, image):
            from torch.nn.functional import avg_pool2d

            return avg_pool2d(image.seeds[None], self.window, 1, self.window // 2, count_include_pad=False)[0]


    Method = Blur
    '''
BLUR, REFINERS = "defaults: [/schema/refiner@_here_: blur, _self_]\nwindow: 3\n", {   # the files of conf/refiner/
    "blur": "{BLUR}", "blur_again": "{BLUR}", "wide": "defaults: [blur, _self_]\nwindow: 9\n",
    "torn": "defaults: [/schema/refiner@_here_: torn, _self_]\n"}


@pytest.fixture(scope="module")
def refiners(made_once, smoke_outputs):
    """A copy of the tree with new refiners; `outputs` has the finished run and the run `blur`, made with `refiner=blur`, and `said.txt`
    what its report, a comparison and a prediction printed."""
    def make(tree: Path) -> None:
        copy_code(ROOT, tree)
        (tree / "wsss/refiners/blur.py").write_text(textwrap.dedent(REFINER))
        (tree / "wsss/refiners/torn.py").write_text("import nowhere\n\nMethod = nowhere.Method\n")
        for name, content in REFINERS.items():
            (tree / f"conf/refiner/{name}.yaml").write_text(f"# @package refiner\n{content.replace('{BLUR}', BLUR)}")
        copied(smoke_outputs, tree / "outputs")
        image = next((tree / "outputs/.data").glob("*/images/train_0001.*"))
        (tree / "said.txt").write_text(acts(
            tree, ("name=blur", "refiner=blur", "reuse_from=[smoke]", "report.write=true", "make_sem_seg_labels.save_soft=true"),
            ("action=compare", "runs=[smoke,blur]"), ("name=blur", "action=predict", f"image={image}", "class_threshold=0", "refiner=none"),
            chosen=(USUAL,)))
    return made_once("refiners", make)


def test_a_refiner_makes_its_masks_and_needs_no_irn(refiners):
    run = refiners / "outputs/blur"
    chosen, said = json.loads((run / "make_sem_seg_labels/threshold.json").read_text()), (refiners / "said.txt").read_text()
    assert chosen["refiner"] == "blur" and max(chosen["val_miou"]) == chosen["tried"][0]["miou"]   # one curve for all thresholds
    assert re.search(r"\n  train_irn +left out +no step reads it with refiner=blur\n", said)
    assert re.search(r"\n  make_sem_seg_labels +run +24 images +\? +\? +\? *\n", said)   # it does not say what it needs
    assert ["refiner.method", "walk", "blur"] in [re.split(r"  +", line.strip()) for line in said.splitlines()]
    report = (run / "report/report.html").read_text()
    assert "<dt>refiner</dt><dd>blur, window=3</dd>" in report and ">blur<" in report
    maps, seeds = Maps(run / "make_lpcam"), sorted((run / "make_sem_seg_labels/blur").glob("*.npy"))
    assert len(seeds) == 24 and not (run / "make_sem_seg_labels/edge").exists()
    for file in seeds:
        mean = avg_pool2d(maps.at(file.stem, "strided")[None], 3, 1, 1, count_include_pad=False)[0].numpy()
        assert np.allclose(np.load(file), mean / max(mean.max(initial=0), 1e-9), atol=1e-3)
    predicted = np.load(next((run / "predictions").glob("train_0001.*/blur.npy")))   # by the refiner of the run
    assert predicted.max() == 1 and predicted.shape[1:] == maps.at("train_0001", "full").shape[1:]


def test_a_refiner_counts_by_its_module_and_settings(refiners):
    run = ("name=blur", "make_sem_seg_labels.save_soft=true")
    same, again, wide, walk = (found["make_sem_seg_labels"] for found in plans(
        refiners, *((*run, f"refiner={name}") for name in ("blur", "blur_again", "wide", "walk")), chosen=(USUAL,)))
    assert same[0] == again[0] == "skip" and wide == ["re-run", 24, "refiner.window: 3 -> 9"]
    assert walk[0] == "re-run" and walk[2].startswith("refiner: blur -> walk; refiner.window: 3 -> null; refiner.beta: null -> 10.0")
    identity = json.loads((refiners / "outputs/blur/make_sem_seg_labels/manifest.json").read_text())["identity"]
    assert identity["refiner"] == {"method": "blur", "window": 3}


def test_the_keys_of_a_refiner_and_their_misspellings(refiners):
    words = (("refiner=blurr",), ("refiner=blur", "refiner.windw=3"), ("refiner=blur", "refiner.window=wide"), ("refiner.window=3",),
             ("refiner=torn",), ("refiner=walk",))
    name, key, value, other, torn, walk = plans(refiners, *words, chosen=(USUAL,))
    assert name == ("refiner=blurr: there is no such option; did you mean 'blur'? (allowed: best_on_val, blur, blur_again, crf, none, proposals, psa, psa_mctformer, psa_official, saliency, "
                    "saliency_crf, torn, walk, walk_crf, walk_irn, walk_official, walk_power, wide)")
    assert key == "refiner.windw: there is no such key; did you mean 'window'? (allowed here: window)"
    assert value == "refiner.window: Value 'wide' of type 'str' could not be converted to Integer"
    assert other == "refiner.window: there is no such key; did you mean 'infer_seg.window' or 'infer_seg_gt.window'? (allowed here: beta, exp_times, scale_steps, radius, pad_to)"
    assert torn == (f"refiner: {refiners / 'wsss/refiners/torn.py'} cannot be imported (ModuleNotFoundError: No module named 'nowhere'). "
                    "Correct the file, or choose another method by refiner=NAME")
    assert {step[0] for step in walk.values()} == {"skip"}   # no other refiner is broken
