"""From and to the official code: imported maps and labels, exports, imported networks and prototypes."""

import json
import os
import shutil
import signal
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline import Pipeline
from pipeline.actions.export_official import export_official
from pipeline.actions.import_official import import_plan
from pipeline.commandline import act
from pipeline.plan.plan import survey
from steps.runtime.artifacts import Maps
from steps.runtime.context import Stopped
from steps.runtime.datasets import open_dataset
from tests.conftest import SMOKE, TINY, actions, quick_plan
from tests.networks import new_backbone
from tests.wsss.official_networks import OfficialCam, OfficialIrn
from wsss.data.drawing import CLASSES
from wsss.data.images import read_mask
from wsss.errors import ConfigError, DataError, WeightsError
from wsss.networks.irn import IRN
from wsss.official import PROTOTYPE_FILES, read_dictionary, write_label
from wsss.official_networks import IRN as OFFICIAL_IRN
from wsss.official_networks import write_network

RESNET = "backbone=resnet18"


@pytest.fixture(scope="session")
def exported(smoke_outputs, made_once):
    """What the finished run looks like to the official code: never changed; see `files`."""
    def make(target):
        report = Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", "action=export_official", f"export_to={target}").export_official()
        assert {line.what: line.found for line in report} == {
            "cam_mask": 32, "lpcam_mask": 32, "ir_label": 24, "sem_seg": 24, "res50_cam.pth": 0, "res50_irn.pth": 0}
    return made_once("official", make)


@pytest.fixture
def files(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "official")


@pytest.fixture
def other(smoke_outputs, tmp_path):
    """`other(*overrides)` composes a new run beside nothing, on the data set of the finished run."""
    outputs = tmp_path / "other_outputs"
    outputs.mkdir()
    (outputs / ".data").symlink_to(smoke_outputs / ".data")
    return lambda *overrides: Pipeline.compose(*SMOKE, f"outputs={outputs}", "name=other", *overrides)


@pytest.fixture
def few(tmp_path):
    """A list of three images."""
    (tmp_path / "few.txt").write_text("val_0001\ntrain_0001\ntrain_0002\n")
    return tmp_path / "few.txt"


def manifest(pipeline, step: str) -> dict:
    return json.loads((pipeline.folder.result(step) / "manifest.json").read_text())


def test_exported_and_imported_maps_and_labels_are_equal(smoke_outputs, exported, other):
    other("action=import_official", f"import_from={exported}").import_official()
    run, smoke = other().folder.path, smoke_outputs / "smoke"
    for step in ("make_cam", "make_lpcam"):
        ours, theirs = Maps(run / step), Maps(smoke / step)
        assert ours.index.keys() == theirs.index.keys()
        for image_id in list(theirs.index)[::5]:
            assert ours.classes(image_id) == theirs.classes(image_id)
            for resolution in ("full", "strided"):   # float16: half of 2^-11 below 1
                torch.testing.assert_close(ours.at(image_id, resolution), theirs.at(image_id, resolution), atol=2.5e-4, rtol=0)
    for step in ("cam_to_ir_label", "make_sem_seg_labels"):
        for file in (smoke / step).glob("*.png"):
            assert np.array_equal(read_mask(file), read_mask(run / step / file.name))
    facts = manifest(other(), "make_cam")
    assert facts["result"] == {"imported_from": str(exported)} and facts["settings"] == {}
    plan = {planned.name: (planned.action, planned.why) for planned in quick_plan(other())}
    assert [action for action, _ in plan.values()] == ["left out", "skip", "skip", "run", "skip", "left out", "skip", "run"]
    assert plan["train_irn"][1] == "make_sem_seg_labels, which reads it, is imported"


def test_later_steps_work_from_imported_maps_and_provided_networks(smoke_outputs, exported, other):
    smoke = smoke_outputs / "smoke"
    keys = [f"train_cam.weights={smoke / 'train_cam/weights.safetensors'}", f"train_irn.weights={smoke / 'train_irn/weights.safetensors'}"]
    other("cam_to_ir_label_pass=false", "make_sem_seg_pass=false", "action=import_official", f"import_from={exported}").import_official()
    plan = {planned.name: planned for planned in quick_plan(other(*keys))}
    assert [planned.action for planned in plan.values()] == ["left out", "skip", "skip", "run", "left out", "imported", "run", "run"]
    assert plan["make_cam"].why == "imported" and plan["train_irn"].why == f"from {smoke / 'train_irn/weights.safetensors'}"
    summary = other(*keys).run()
    for kind in ("make_cam", "make_lpcam"):
        scores = [json.loads((folder / "eval_cam/scores.json").read_text())["scores"][kind]["curve"]["miou"]
                  for folder in (smoke, other().folder.path)]
        assert np.abs(np.subtract(*scores)).max() < 0.01
    equal = [(read_mask(smoke / "make_sem_seg_labels" / file.name) == read_mask(file)).mean()
             for file in (other().folder.path / "make_sem_seg_labels").glob("*.png")]
    assert len(equal) == 24 and np.mean(equal) > 0.98
    assert summary["scores"]["make_sem_seg_labels"]["images"] == 24
    assert all(step.ok for step in other(*keys).verify())
    assert set(actions(other(*keys)).values()) == {"skip", "left out"}


def test_lpcam_is_made_from_imported_cams(smoke_outputs, exported, other, few):
    smoke = smoke_outputs / "smoke"
    other("make_cam_pass=true", "action=import_official", f"import_from={exported}").import_official()
    keys = [f"train_cam.weights={smoke / 'train_cam/weights.safetensors'}", f"make_lpcam.prototypes={smoke / 'make_lpcam/prototypes.npz'}"]
    other(*keys, "steps=[train_cam,make_cam,make_lpcam]", f"make_lpcam.split={few}").run()
    ours, theirs = Maps(other().folder.path / "make_lpcam"), Maps(smoke / "make_lpcam")
    kept = np.load(smoke / "make_lpcam/prototypes.npz")
    found = set(kept["class_index"][kept["kept"] & ~kept["is_background"]].tolist())
    assert len(ours.index) == 3
    for image_id, facts in ours.index.items():
        for k, index in enumerate(facts["classes"]):
            if index in found:
                assert np.array_equal(ours.packed(image_id)[k], theirs.packed(image_id)[k])
            else:   # its CAM, as near as it can be had from the imported one
                torch.testing.assert_close(ours.at(image_id, "full")[k], theirs.at(image_id, "full")[k], atol=0.35, rtol=0)


def test_only_lpcam_maps(exported, other):
    steps = "steps=[make_lpcam,eval_cam,cam_to_ir_label]"
    other(steps, "make_lpcam_pass=true", "action=import_official", f"import_from={exported}").import_official()
    summary = other(steps).run()
    assert list(summary["scores"]) == ["make_lpcam"] and summary["steps"]["cam_to_ir_label"]["images"] == 24


@pytest.fixture
def from_files(smoke_outputs, tmp_path):
    """`from_files(*overrides)` composes a run of experiment=imported_maps on the data set of the finished run."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/.data").symlink_to(smoke_outputs / ".data")
    words = [word for word in SMOKE if word not in ("experiment=smoke", *TINY)]   # train_irn is planned with ImageNet weights
    return lambda *overrides: Pipeline.compose("experiment=imported_maps", *words, f"outputs={tmp_path / 'outputs'}",
                                               "refiner=crf", *overrides)


def test_the_maps_of_a_folder_are_scored_and_refined(smoke_outputs, files, from_files, tmp_path):
    call = f"imported.maps={files / 'lpcam_mask'}"
    summary = from_files(call).run()
    run, smoke = from_files().folder.path, smoke_outputs / "smoke"
    ours, theirs = Maps(run / "imported"), Maps(smoke / "make_lpcam")
    assert len(ours.index) == 32
    for image_id in list(ours.index)[::5]:
        assert ours.classes(image_id) == theirs.classes(image_id)
        for resolution in ("full", "strided"):   # float16: half of 2^-11 below 1
            torch.testing.assert_close(ours.at(image_id, resolution), theirs.at(image_id, resolution), atol=2.5e-4, rtol=0)
    assert list(summary["scores"]) == ["imported", "make_sem_seg_labels"]
    before = json.loads((smoke / "summary.json").read_text())["scores"]["make_lpcam"]["miou"]
    assert summary["scores"]["imported"]["miou"] == pytest.approx(before, abs=0.01)
    assert summary["scores"]["make_sem_seg_labels"]["miou"] > 0 and summary["scores"]["make_sem_seg_labels"]["images"] == 24
    plan = {planned.name: (planned.action, planned.why) for planned in quick_plan(from_files(call))}
    assert plan["train_irn"] == ("left out", "no step reads it with refiner=crf")
    assert {action for action, _ in plan.values()} == {"skip", "left out"}
    assert all(step.ok for step in from_files(call).verify())
    assert list(from_files(call).tune()) == ["labels", "eval_cam", "cam_to_ir_label"]
    with pytest.raises(ConfigError, match="action=predict needs train_cam, make_cam, but .* has no finished train_cam, make_cam"):
        from_files().predict("any.jpg")
    (files / "lpcam_mask").rename(tmp_path / "elsewhere")   # the files count, not their folder
    assert actions(from_files(f"imported.maps={tmp_path / 'elsewhere'}"))["imported"] == "skip"
    plan = from_files(f"imported.maps={files / 'cam_mask'}").plan()
    assert [(planned.action, planned.why) for planned in plan[:2]] == [
        ("re-run", "imported.maps changed"), ("re-run", "imported changed")]


def test_maps_that_the_folder_lacks_are_refused_before_any_work(files, from_files):
    for name in ("train_0003", "train_0004", "val_0001", "val_0002"):
        (files / f"cam_mask/{name}.npy").unlink()
    for words, message in ((["imported.maps=" + str(files / "cam_mask")], "imported.maps=.*cam_mask lacks the files of 4 of the 32 images "
                            r"that are needed \(train_0003.npy, train_0004.npy, val_0001.npy, ...\)"),
                           (["imported.maps=nowhere"], "imported.maps=nowhere lacks the files of 32 of the 32 images"),
                           ([], "imported.maps=None is not possible: expected a folder with the maps of each image")):
        with pytest.raises(ConfigError, match=message):
            from_files(*words).run()
    assert not from_files().folder.path.exists()


def test_an_imported_step_is_kept_until_other_files_are_imported(files, other):
    call = ("action=import_official", f"import_from={files}", "make_cam_pass=true")
    other(*call).import_official()
    first = manifest(other(), "make_cam")
    assert actions(other("force=true", "make_cam_pass=true"))["make_cam"] == "skip"
    assert actions(other("make_cam.scales=[1.0]"))["make_cam"] == "skip"
    before = (other().folder.result("make_cam") / "manifest.json").stat().st_mtime_ns
    other(*call).import_official()   # nothing to do
    assert (other().folder.result("make_cam") / "manifest.json").stat().st_mtime_ns == before
    other("steps=[make_cam,eval_cam]", "seed_maps=make_cam").run()
    file = next((files / "cam_mask").glob("*.npy"))
    content = np.load(file, allow_pickle=True).item()
    content["cam"] *= 0.5
    np.save(file, content)
    other(*call).import_official()
    assert manifest(other(), "make_cam")["fingerprint"] != first["fingerprint"]
    plan = {planned.name: planned for planned in quick_plan(other("steps=[make_cam,eval_cam]", "seed_maps=make_cam"))}
    assert (plan["eval_cam"].action, plan["eval_cam"].why) == ("re-run", "make_cam changed")


def test_what_is_missing_or_broken_is_not_made_here_but_refused(files, other):
    gone = sorted((files / "cam_mask").glob("*.npy"))[0]
    kept = gone.read_bytes()
    gone.unlink()
    call, later = ("action=import_official", f"import_from={files}", "make_cam_pass=true"), ("steps=[make_cam,eval_cam]", "seed_maps=make_cam")
    other(*call).import_official()
    for flags in ((), ("eval_cam_pass=true",)):
        with pytest.raises(ConfigError, match="make_cam"):
            other(*later, *flags).plan()
    with pytest.raises(ConfigError, match=r"make_cam was imported, but not completely \(1 image new\)"):
        other(*later).plan()
    gone.write_bytes(kept)
    other(*call).import_official()
    assert actions(other(*later))["make_cam"] == "skip"
    path = other().folder.path / f"make_cam/{gone.name}"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = {step.name: step for step in other(*later).verify()}
    assert list(found["make_cam"].broken) == [str(path)]
    with pytest.raises(ConfigError, match=r"not completely \(1 artifact broken\)"):
        other(*later).plan()
    others = {file: file.stat().st_mtime_ns for file in path.parent.glob("*.npy")}
    other(*call).import_official()
    assert actions(other(*later))["make_cam"] == "skip" and all(file.stat().st_mtime_ns == t for file, t in others.items())


def test_bad_files_are_named_and_the_others_imported(files, other):
    first, second, *_ = sorted((files / "cam_mask").glob("*.npy"))
    first.write_bytes(first.read_bytes()[:700])
    np.save(second, {"keys": Trap()})
    call = ("action=import_official", f"import_from={files}", "make_cam_pass=true")
    with pytest.raises(Exception, match="make_cam: 2 of 32 images failed, the others are done"):
        other(*call).import_official()
    failed = json.loads(next(other().folder.path.glob("make_cam.partial-*/failed.json")).read_text())
    assert "is damaged or not a .npy file" in failed[first.stem]
    assert "refers to posix.getcwd; expected NumPy arrays" in failed[second.stem]
    first, second, *_ = sorted((files / "ir_label").glob("*.png"))
    write_label(first, np.zeros((5, 5), np.uint8))
    write_label(second, np.full(read_mask(second).shape, len(CLASSES) + 1, np.uint8))
    with pytest.raises(Exception, match="2 of 24 images failed"):
        other("action=import_official", f"import_from={files}", "cam_to_ir_label_pass=true").import_official()
    failed = json.loads(next(other().folder.path.glob("cam_to_ir_label.partial-*/failed.json")).read_text())
    assert "is 5 high and 5 wide, but its image" in failed[first.stem]
    assert f"holds values beyond the {len(CLASSES)} classes of the data set" in failed[second.stem]


class Trap:
    def __reduce__(self):
        return os.getcwd, ()


def test_an_interrupted_import_continues(exported, other, monkeypatch):
    call, read = ("action=import_official", f"import_from={exported}", "make_cam_pass=true"), []
    pipeline = other(*call)

    def stop_after_three(path):
        read.append(path)
        if len(read) == 3:
            pipeline.group.asked = signal.SIGTERM
        return read_dictionary(path)
    monkeypatch.setattr("wsss.official.read_dictionary", stop_after_three)
    with pytest.raises(Stopped):
        pipeline.import_official()
    other(*call).import_official()
    assert len(read) == len(set(read)) == 32


@pytest.mark.parametrize(("overrides", "message"), [
    ([], "action=import_official needs the folder of the official code"),
    (["action=import_official", "import_from=nowhere"], "import_from=nowhere has no files of shapes for the selected steps. Expected files: cam_mask/ID.npy"),
])
def test_nothing_to_import(other, overrides, message):
    with pytest.raises(ConfigError, match=message):
        other(*overrides).import_official()
    assert not other().folder.path.exists()


def test_maps_that_were_made_here_are_not_replaced_unasked(smoke, exported):
    call = ("action=import_official", f"import_from={exported}", "make_cam_pass=true")
    with pytest.raises(ConfigError, match="make_cam is finished in .* and would be replaced by the import. Set replace=true"):
        smoke(*call).import_official()
    smoke(*call, "replace=true").import_official()
    assert actions(smoke("replace=true"))["make_cam"] == "skip"


def test_an_export_goes_on_and_never_mixes_results(smoke, files):
    call = ("action=export_official", f"export_to={files}")
    files_of = sorted((files / "lpcam_mask").glob("*.npy"))
    times = {file: file.stat().st_mtime_ns for file in files_of[1:]}
    files_of[0].unlink()
    report = {line.what: line.note for line in smoke(*call).export_official()}
    assert report["lpcam_mask"] == "1 written, 31 were there" and files_of[0].exists()
    assert all(file.stat().st_mtime_ns == t for file, t in times.items())
    smoke("refiner.beta=2", "to_step=make_sem_seg_labels").run()
    for _ in range(2):   # also after a replacement that was interrupted
        with pytest.raises(ConfigError, match="sem_seg exists and was not written from these results. Set force=true to replace it"):
            smoke(*call, "refiner.beta=2").export_official()
        with patch("wsss.official.write_label", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            smoke(*call, "refiner.beta=2", "make_sem_seg_pass=true", "force=true").export_official()
    report = {line.what: line.note for line in smoke(*call, "refiner.beta=2", "force=true").export_official()}
    assert report["sem_seg"] == "24 written, 0 were there"
    report = {line.what: (line.found, line.note) for line in smoke(*call).export_official()}
    assert report["sem_seg"] == (0, "make_sem_seg_labels is not up to date (refiner.beta: 2.0 -> 10.0)")


SAME = "make_lpcam and second have the same official files, lpcam_mask. Choose one with make_lpcam_pass=true or second_pass=true"


def test_only_one_of_two_steps_with_the_same_files_is_exported(smoke, second_row, tmp_path):
    target = tmp_path / "export"
    pipeline = smoke("action=export_official", f"export_to={target}")
    dataset, folder = open_dataset(pipeline.config.data), pipeline.folder
    states = survey(pipeline.config, dataset, folder)
    first = next(planned for planned in states if planned.name == "make_lpcam")
    states.append(replace(first, step=second_row(pipeline, "make_lpcam"), identity={**first.identity, "made": "otherwise"}))

    def export(*chosen: str, force: bool = False) -> dict:
        pipeline.config.force = force
        with patch("pipeline.actions.export_official.survey", return_value=states):
            return {line.what: line.note for line in export_official(pipeline.config, dataset, folder, chosen, lambda *_: None)}
    with pytest.raises(ConfigError, match=SAME):
        export("make_cam", "make_lpcam", "second")
    assert not target.exists()
    assert export("make_cam", "make_lpcam") == {"cam_mask": "32 written, 0 were there", "lpcam_mask": "32 written, 0 were there"}
    for name in ("second", "make_lpcam"):   # the record does not name both
        with pytest.raises(ConfigError, match="lpcam_mask exists and was not written from these results"):
            export(name)
        assert export(name, force=True) == {"lpcam_mask": "32 written, 0 were there"}
        assert export(name) == {"lpcam_mask": "0 written, 32 were there"}


def test_the_same_files_are_imported_into_one_step_only(smoke, second_row, exported):
    pipeline = smoke("action=import_official", f"import_from={exported}", "replace=true")
    dataset, folder = open_dataset(pipeline.config.data), pipeline.folder
    second_row(pipeline, "make_lpcam")

    def planned(*chosen: str) -> list[str]:
        with patch("pipeline.actions.import_official.selected", return_value=chosen):
            return [step.name for step in import_plan(pipeline.config, dataset, folder)]
    with pytest.raises(ConfigError, match=SAME):
        planned("make_cam", "make_lpcam", "second")
    assert planned("make_cam", "second") == ["make_cam", "second"] and planned("make_lpcam") == ["make_lpcam"]


@pytest.mark.parametrize(("overrides", "message"), [
    (["export_to=null"], "action=export_official needs a target folder"),
    (["action=export_official", "export_to={tmp}", "name=nothing"], "there is no run"),
    (["action=export_official", "export_to={tmp}", "seed=1"], "has no up-to-date results to export"),
    (["action=export_official", "export_to={tmp}", "data.max_side=100"], "data.max_side=100: the maps were made from resized images"),
])
def test_what_cannot_be_exported(smoke, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        smoke(*(override.format(tmp=tmp_path / "export") for override in overrides)).export_official()
    assert not (tmp_path / "export").exists()


def test_from_the_command_line(smoke_outputs, tmp_path, capsys):
    keys = (*SMOKE, f"outputs={smoke_outputs}", "action=export_official", f"export_to={tmp_path / 'out'}", "make_cam_pass=true")
    assert act(Pipeline.compose(*keys)) == 0 and "32 written" in capsys.readouterr().out
    keys = (*SMOKE, f"outputs={tmp_path}", "action=import_official", f"import_from={tmp_path / 'out'}", f"data.root={smoke_outputs / '.data'}")
    assert act(Pipeline.compose(*keys)) == 0
    assert "make_cam             done              32 images" in capsys.readouterr().out
    assert Pipeline.compose(*SMOKE, f"outputs={tmp_path}").report().exists()   # import_from is not a key of this action


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """res50_cam.pth of the official layout, but with a ResNet-18, for 8 classes: the folder and the network."""
    folder = tmp_path_factory.mktemp("networks")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = OfficialCam(len(CLASSES), "resnet18")
    torch.save(net.state_dict(), folder / "cam.pth")
    return folder, net


def test_a_provided_classifier(other, networks, few, tmp_path, monkeypatch):
    folder, net = networks
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))   # no ImageNet weights, and none may be fetched
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", lambda *arguments, **options: pytest.fail("something was fetched"))
    maps = ("steps=[train_cam,make_cam]", "seed_maps=make_cam", f"make_cam.split={few}")
    call = (RESNET, f"train_cam.weights={folder / 'cam.pth'}", *maps)
    plan = other(*call, "backbone.pretrained=true", "train_cam.split=nowhere.txt").plan()   # no list, no ImageNet weights
    assert (plan[0].action, plan[0].to_do, plan[0].unit, plan[0].why) == ("imported", 1, "file", f"from {folder / 'cam.pth'}")
    assert not other().folder.path.exists()
    other(*call, "backbone.pretrained=true").run()
    facts = manifest(other(), "train_cam")
    assert facts["result"] == {"imported_from": str(folder / "cam.pth")} and facts["lists"] == {}
    weights = load_file(other().folder.result("train_cam") / "weights.safetensors")
    assert torch.equal(weights["backbone.layer4.1.conv2.weight"], net.resnet50.layer4[1].conv2.weight)
    assert list(actions(other(*call, "train_cam.epochs=3", "train_cam.batch_size=2")).values()) == ["skip", "skip"]
    # the same network in another file, then another network
    torch.save({"state_dict": net.state_dict()}, tmp_path / "other.pth")
    plan = other(RESNET, f"train_cam.weights={tmp_path / 'other.pth'}", *maps).plan()
    assert [(planned.action, planned.why) for planned in plan] == [
        ("imported", f"from {tmp_path / 'other.pth'}; imported files changed"), ("re-run", "train_cam changed")]
    plan = other(RESNET, *maps).plan()
    assert (plan[0].action, plan[0].why) == ("re-run", "no longer imported")


def test_a_provided_irn_alone(smoke, tmp_path):
    irn = IRN(new_backbone("tiny", "frozen_batch"))   # the backbone of the finished run, whose classifier stays
    irn.set_displacement_mean(torch.tensor([0.25, -1.5]))
    write_network(tmp_path / "irn.pth", irn.state_dict(), OFFICIAL_IRN)
    call = (f"train_irn.weights={tmp_path / 'irn.pth'}", "replace=true")
    with pytest.raises(ConfigError, match="train_irn is finished in .* and would be replaced .*now imported.* Set replace=true"):
        smoke(call[0]).plan()
    plan = actions(smoke(*call))
    assert (plan["train_cam"], plan["train_irn"], plan["make_sem_seg_labels"]) == ("skip", "imported", "re-run")
    smoke(*call, "train_irn_pass=true").run()
    weights = load_file(smoke().folder.result("train_irn") / "weights.safetensors")
    assert weights["mean_shift.running_mean"].tolist() == [0.25, -1.5]
    assert actions(smoke(*call, "train_irn.epochs=9"))["train_irn"] == "skip"
    assert all(step.ok for step in smoke(*call).verify())
    (smoke().folder.result("train_irn") / "weights.safetensors").unlink()   # it is taken from its file again
    assert actions(smoke(*call[:1]))["train_irn"] == "imported"
    smoke(*call[:1], "train_irn_pass=true").run()


@pytest.mark.parametrize(("change", "message"), [
    (lambda state: state | {name: torch.zeros(20, 512, 1, 1) for name in ("classifier.weight", "newly_added.0.weight")},
     rf"train_cam.weights=.*cam.pth is a classifier of 20 classes \(classifier.weight \(20, 512, 1, 1\)\); the data set shapes in .* has {len(CLASSES)}"),
    (lambda state: {name: value for name, value in state.items() if not name.startswith(("resnet50.layer2", "stage2", "backbone.1."))},
     r"\(backbone resnet18\) does not fit the network. \d+ missing: .*backbone.layer.*, \.\.\.\. Use the backbone"),
    (lambda state: {"classifier.weight": state["classifier.weight"], "head.weight": torch.zeros(1)}, "1 unexpected: backbone.head.weight"),
    (lambda state: state | {"stage3.0.0.bn1.bias": torch.zeros(256)}, "are one parameter of the official network, but differ"),
    (lambda state: [1, 2], "holds no plain state dict"),
    (None, "cannot read the weights .*cam.pth"), (lambda state: {"classifier.weight": Trap()}, "cam.pth is damaged or not a weights file"),
])
def test_weights_that_do_not_fit_are_refused_before_any_work(other, networks, tmp_path, change, message):
    if change:
        torch.save(change(dict(networks[1].state_dict())), tmp_path / "cam.pth")
    with pytest.raises(WeightsError, match=message):
        other(RESNET, f"train_cam.weights={tmp_path / 'cam.pth'}").run()
    assert not other().folder.path.exists()


def test_exported_weights_come_back_equal(other, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        nets = {"cam": OfficialCam(8), "irn": OfficialIrn()}
    keys = ["backbone=resnet50", "steps=[train_cam,make_cam,cam_to_ir_label,train_irn]", "seed_maps=make_cam"]
    for name, net in nets.items():
        torch.save(net.state_dict(), tmp_path / f"{name}.pth")
        keys.append(f"train_{name}.weights={tmp_path / name}.pth")
    chosen = ("train_cam_pass=true", "train_irn_pass=true")
    other(*keys, *chosen).run()
    report = other(*keys, *chosen, "action=export_official", f"export_to={tmp_path / 'out'}").export_official()
    assert {line.what: line.found for line in report} == {"res50_cam.pth": 1, "res50_irn.pth": 1}
    for name, net in nets.items():
        state = torch.load(tmp_path / f"out/res50_{name}.pth", weights_only=True)
        expected = net.state_dict()
        assert expected.keys() - state.keys() <= {"path_indices0", "disp_target"} and state.keys() <= expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in state.items())


def test_given_prototypes_are_not_clustered(smoke, smoke_outputs, outputs, few, tmp_path):
    given = shutil.copy(outputs / "smoke/make_lpcam/prototypes.npz", tmp_path / "mine.npz")
    call = (f"make_lpcam.prototypes={given}", "steps=[train_cam,make_cam,make_lpcam]", f"make_lpcam.split={few}")
    smoke(*call, "make_lpcam.prototype_split=nowhere.txt").run()
    for file in ("prototypes.npz", "val_0001.npy", "fg_only/val_0001.npy"):
        mine, theirs = (np.load(folder / "smoke/make_lpcam" / file) for folder in (outputs, smoke_outputs))
        for name in mine.files if file.endswith("npz") else [None]:
            assert np.array_equal(mine[name], theirs[name]) if name else np.array_equal(mine, theirs)
    assert set(actions(smoke(*call, "make_lpcam.n_clusters=3", "make_lpcam.fg_threshold=0.5")).values()) == {"skip"}
    with np.load(given) as file:
        arrays = dict(file)
    np.savez(given, **{**arrays, "kept": ~arrays["kept"]})
    assert {planned.name: planned.why for planned in quick_plan(smoke(*call))}["make_lpcam"] == "make_lpcam.prototypes changed"


def test_official_prototypes_are_taken(smoke, outputs, few, tmp_path):
    with np.load(outputs / "smoke/make_lpcam/prototypes.npz") as file:
        arrays = dict(file)
    for name, is_background in zip(PROTOTYPE_FILES, (False, True), strict=True):
        torch.save({index: torch.from_numpy(arrays["center"][(arrays["class_index"] == index) & (arrays["is_background"] == is_background) & arrays["kept"]])
                    for index in range(len(CLASSES))}, tmp_path / name)
    before = Maps(outputs / "smoke/make_lpcam").packed("val_0001")
    smoke(f"make_lpcam.prototypes={tmp_path}", "steps=[train_cam,make_cam,make_lpcam]", f"make_lpcam.split={few}").run()
    assert np.array_equal(Maps(outputs / "smoke/make_lpcam").packed("val_0001"), before)


@pytest.mark.parametrize(("change", "message"), [
    (lambda arrays: arrays | {"class_index": arrays["class_index"] + 1}, f"has {len(CLASSES) + 1} classes, the data set has {len(CLASSES)}"),
    (lambda arrays: arrays | {"center": arrays["center"][:, :10]}, "has features of dimension 10, the network has dimension 32"),
    (lambda arrays: arrays | {"center": np.full_like(arrays["center"], np.inf)}, "holds numbers that are not finite"),
    (lambda arrays: arrays | {"kept": arrays["kept"][:3]}, r"does not hold center \(n, D\), class_index"),
    (lambda arrays: {"center": arrays["center"]}, "is damaged or not a prototypes.npz"),
    (None, "there is no readable file"),
])
def test_prototypes_that_do_not_fit_are_refused_before_any_work(smoke, outputs, tmp_path, change, message):
    if change:
        with np.load(outputs / "smoke/make_lpcam/prototypes.npz") as file:
            np.savez(tmp_path / "mine.npz", **change(dict(file)))
    with pytest.raises(DataError, match=f"make_lpcam.prototypes=.*mine.npz.*{message}"):
        smoke(f"make_lpcam.prototypes={tmp_path / 'mine.npz'}", "to_step=make_lpcam").plan()
    assert not list((outputs / "smoke").glob("*.partial-*"))
