"""`make_cam.also_score=[...]`: further methods make maps beside the main ones, which are scored and go no further."""

import json
from dataclasses import replace

import pytest

from pipeline import Pipeline
from pipeline.config import compose, typed
from pipeline.order import BY_NAME, titles
from pipeline.report import kinds
from steps.runtime.artifacts import Maps
from steps.runtime.inference import ImagesFailed
from steps.runtime.journal import LACKING, merge_journals, unfinished
from steps.runtime.store import Layout
from tests.conftest import SMOKE, contents, works
from wsss.cams.gradcam import GradCAM
from wsss.cams.layercam import LayerCAM
from wsss.errors import ConfigError

LAYERCAM, GRADCAM = LayerCAM([-1]), GradCAM(-1)


@pytest.fixture
def make(smoke, outputs, tmp_path):
    """`make(folder, further, layout)` makes the maps of three images, and returns what is in the folder."""
    context = smoke().recorded(outputs / "smoke").context("make_cam")

    def of(name, further, layout=Layout.files):
        (folder := tmp_path / name / "make_cam").mkdir(parents=True, exist_ok=True)
        mine = replace(context, folder=folder, lists={"ids": context.ids[:3]}, further=further,
                       runtime=replace(context.runtime, layout=layout))
        BY_NAME["make_cam"].run(mine)
        merge_journals(folder, mine.ids)
        return contents(folder)
    of.context, of.folder = context, tmp_path
    return of


@pytest.mark.parametrize("layout", list(Layout))
def test_an_added_kind_makes_no_other_again(make, monkeypatch, layout):
    whole = make("whole", {"gradcam": GRADCAM, "layercam": LAYERCAM})
    first = make("parts", {"layercam": LAYERCAM}, layout)
    monkeypatch.setattr(LayerCAM, "maps", None)                 # would fail, as those of the main method
    monkeypatch.setattr(type(make.context.methods["cam"]), "maps", None)
    parts = make("parts", {"layercam": LAYERCAM, "gradcam": GRADCAM}, layout)
    if layout is Layout.files:
        assert parts == whole and first.items() - {("index.jsonl", first["index.jsonl"])} <= parts.items()
    for kind in ("", "gradcam", "layercam"):
        a, b = (Maps(make.folder / name / "make_cam", kind) for name in ("whole", "parts"))
        assert a and all((a.packed(image_id) == b.packed(image_id)).all() for image_id in a.index)
        assert all(a.facts(image_id)["grids"] == b.facts(image_id)["grids"] for image_id in a.index)
    assert len(list((make.folder / "parts/make_cam").glob("packs/*.tar"))) == (layout is Layout.packed)
    read = BY_NAME["make_cam"].reader(make.folder / "parts/make_cam", 8)
    for image_id in make.context.ids[:3]:
        read(image_id)
    assert make("parts", {}, layout) == parts                   # a kind that is not wanted any more stays


def test_the_maps_of_a_further_method_are_those_that_it_makes_alone(make):
    both, alone = make("both", {"layercam": LAYERCAM}), make("main", {})
    assert {name: both[name] for name in both if name.startswith("train") or name.startswith("val")} == {
        name: content for name, content in alone.items() if name != "index.jsonl"}
    make.context.methods["cam"] = LAYERCAM
    main = make("layercam", {})
    names = [name for name in both if name.startswith("layercam/")]
    assert len(names) == 3 and all(both[name] == main[name.removeprefix("layercam/")] for name in names)


def test_only_the_kind_whose_settings_changed_is_made_again(make, monkeypatch):
    before = make("run", {"gradcam": GRADCAM, "layercam": LAYERCAM})
    monkeypatch.setattr(GradCAM, "maps", None)
    after = make("run", {"gradcam": GRADCAM, "layercam": LayerCAM([-2, -1])})
    assert {name.split("/")[0] for name in after if after[name] != before[name]} == {"layercam", "index.jsonl"}
    dataset, folder, ids = make.context.dataset, make.folder / "run/make_cam", make.context.ids[:3]
    by = {"layercam": {"method": "layercam", "stages": [-2, -1]}}
    assert unfinished(folder, ids, dataset, added=by) == {}
    assert set(unfinished(folder, ids, dataset, added={"layercam": {"method": "layercam", "stages": [-1]}}).values()) == {LACKING}


def test_maps_that_are_there_are_checked_before_others_join_them(make):
    make("run", {})
    image_id = make.context.ids[0]
    file = make.folder / f"run/make_cam/{image_id}.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ImagesFailed, match=rf"1 of 3 images failed.*{image_id}.npy is not what was written: size and checksum are .*again"):
        make("run", {"gradcam": GRADCAM})
    assert not file.exists() and file.with_name(f"{file.name}.damaged").exists()
    assert Maps(file.parent, "gradcam").index.keys() == set(make.context.ids[:3])
    make("run", {"gradcam": GRADCAM})
    assert all(f"gradcam/{each}.npy" in Maps(file.parent).facts(each)["files"] for each in make.context.ids[:3])


def test_a_run_scores_further_maps_and_nothing_else_changes(smoke, outputs):
    call = ("make_cam.also_score=[layercam]", "eval_cam.threshold.make_cam_layercam=0.3")
    before = contents(outputs / "smoke/make_lpcam") | contents(outputs / "smoke/make_sem_seg_labels")
    assert works(smoke(*call)) == {"make_cam": "32 images without further kinds of maps",
        "eval_cam": "eval_cam.threshold.make_cam_layercam: null -> 0.3; make_cam_layercam now read"}
    costs = {planned.name: planned.expected for planned in smoke(*call).plan() if planned.works}
    kept = json.loads((outputs / "smoke/make_cam/manifest.json").read_text())
    assert costs["make_cam"].disk_mb > 1.5 * kept["disk_mb"] and costs["make_cam"].seconds is None   # other work than before
    scores = smoke(*call).run()["scores"]
    assert list(scores)[:2] == ["make_cam", "make_cam_layercam"] and scores["make_cam_layercam"]["title"] == "LayerCAM"
    advice = [each for each in smoke().results()["stages"]["remarks"] if each["about"] == "further"]
    points = 100 * (scores["make_cam_layercam"]["miou"] - scores["make_cam"]["miou"])
    assert [(each["text"], each["suggestions"][0]["setting"]) for each in advice] == [
        (f"LayerCAM is {points:.1f} points above CAM, from which the later steps are made.", "cam=layercam")] * (points > 0.5)
    assert (scores["make_cam_layercam"]["threshold"], scores["make_cam_layercam"]["made_from"]) == (0.3, None)
    manifest = json.loads((outputs / "smoke/make_cam/manifest.json").read_text())
    assert manifest["fingerprint"] == kept["fingerprint"] and manifest["added"] == {
        "layercam": {"method": "layercam", "stages": [-3, -2, -1]}}
    assert contents(outputs / "smoke/make_lpcam") | contents(outputs / "smoke/make_sem_seg_labels") == before
    assert works(smoke(*call)) == {} and all(step.ok for step in smoke(*call).verify())
    assert set(works(smoke("eval_cam.threshold.make_cam_gradcam=0.3", *call[:1]))) == {"eval_cam"}   # now chosen on val
    path = smoke(*call, "action=report", "report.traces=1", "report.images=1").report()
    page = path.read_text()
    assert page.count("LayerCAM") > 3 and '"mark k8"' in page   # a colour that no other kind here has

    reused = Pipeline.compose(*SMOKE, f"outputs={outputs}", "name=other", "reuse_from=[smoke]", "to_step=make_cam",
                              "make_cam.also_score=[gradcam,layercam]")
    planned = {each.name: each for each in reused.plan()}["make_cam"]
    assert (planned.action, planned.done, planned.total) == ("reuse", 0, 32)   # of each image only Grad-CAM is made
    assert works(Pipeline.compose(*SMOKE, f"outputs={outputs}", "name=other", "reuse_from=[smoke]", "to_step=make_cam", *call[:1]))[
        "make_cam"].startswith("from ")


def test_the_settings_of_further_kinds():
    config = typed(compose(["make_cam.also_score=[layercam]", "eval_cam.threshold.make_cam_scorecam_fcam=0.2", "eval_cam.fallback.make_cam=0.3"]))
    assert config.further == {"make_cam": {"layercam": LayerCAM([-3, -2, -1])}}
    assert config.eval_cam.fallback["make_cam_layercam"] == 0.3
    assert config.eval_cam.threshold == {"make_cam": None, "make_lpcam_fg_only": None, "make_lpcam": None, "imported": None, "make_amn": None,
                                         "make_amn_lpcam_fg_only": None, "make_amn_lpcam": None,
                                         "make_cam_layercam": None, "make_cam_scorecam_fcam": 0.2}
    assert "make_cam_layercam" not in typed(compose([])).eval_cam.threshold
    assert (titles()["make_cam_scorecam_fcam"], titles()["make_cam_scorecam"]) == ("Score-CAM (scorecam_fcam)", "Score-CAM")


@pytest.mark.parametrize(("override", "expected"), [
    ("make_cam.also_score=[laercam]", r"^make_cam.also_score=\['laercam'\] is not possible: expected names of files in conf/cam/, 'laercam' is "
                                      r"none; did you mean 'layercam'\?"),
    ("make_cam.also_score=[layercam,layercam]", "is not possible: expected no name twice"),
    ("make_cam.also_score=[cam]", "is not possible: expected other methods than that of the main maps, cam=cam"),
    ("make_cam.also_score=[rollout]", "^make_cam.also_score: rollout does not fit the network: Attention rollout needs a transformer"),
    ("eval_cam.threshold.make_cam_laercam=0.1", r"make_cam_laercam: there is no such key; did you mean 'make_cam_layercam'\?"
                                             r" \(allowed here: make_cam, make_lpcam_fg_only, make_lpcam, imported, make_amn, make_amn_lpcam_fg_only, make_amn_lpcam\)$"),
])
def test_what_cannot_be_made_is_refused_before_any_work(override, expected):
    with pytest.raises(ConfigError, match=expected):
        Pipeline.compose("experiment=smoke", "backbone=tiny", override).plan()


def test_further_kinds_have_colours_that_the_others_of_a_page_have_not():
    shown = ["make_cam", "make_cam_gradcam", "make_cam_layercam", "make_lpcam_fg_only", "make_lpcam", "make_sem_seg_labels"]
    assert kinds.tones(shown) == dict(zip(shown, ["k1", "k7", "k6", "k2", "k3", "k8"]))
    both = kinds.tones([*shown, "make_cam_gradcam/boxes", "make_cam/boxes"])   # the same in the tables of masks and of boxes
    assert both == kinds.tones(shown) | {"make_cam_gradcam/boxes": "k7", "make_cam/boxes": "k1"}
    assert max(map([*kinds.tones(titles()).values()].count, ("k1", "k4", "k8"))) <= 5   # of 32 kinds, as few of one colour as can be


def test_the_maps_of_any_method_can_be_the_seeds_of_lpcam(smoke, outputs):
    before = contents(outputs / "smoke/make_lpcam")
    smoke("cam=layercam", "cam.stages=[-1]", "to_step=make_lpcam").run()
    after = contents(outputs / "smoke/make_lpcam")
    assert after.keys() == before.keys() and after["prototypes.npz"] != before["prototypes.npz"]   # of other features
    manifest = json.loads((outputs / "smoke/make_lpcam/manifest.json").read_text())
    assert manifest["sources"] == {"classifier": ["train_cam"], "cams": ["make_cam"]}
