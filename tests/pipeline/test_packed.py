"""`artifacts.layout=packed`: the same results in a tar for each process, and whatever reads them."""

import json
import os
import shutil
import tarfile

import pytest

from pipeline import Pipeline
from tests.conftest import SMOKE, actions, contents, copied, interrupted, remove
from tests.pipeline.test_distributed import together
from wsss.errors import WsssError

PACKED, PACK = "artifacts.layout=packed", "packs/0-of-1.tar"
STEPS = ("make_cam", "make_lpcam", "cam_to_ir_label", "make_sem_seg_labels")


@pytest.fixture(scope="session")
def packed_outputs(smoke_outputs, made_once):
    """The finished run with the images of all steps made again, in packs: never changed."""
    def make(outputs):
        copied(smoke_outputs, outputs)
        for step in STEPS:
            shutil.rmtree(outputs / "smoke" / step)
        pipeline = Pipeline.compose(*SMOKE, f"outputs={outputs}", PACKED)
        assert actions(pipeline) == dict.fromkeys(actions(pipeline), "skip") | dict.fromkeys(STEPS, "run")   # no fingerprint knows it
        pipeline.run()
    return made_once("packed", make)


@pytest.fixture
def outputs(packed_outputs, tmp_path):
    """As in tests/conftest.py, of the packed run."""
    return copied(packed_outputs, tmp_path / "outputs")


def members(folder):
    with tarfile.open(folder) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def images(folder):
    """What the step has of its images, by the name of each file, in either layout."""
    found = {}
    for line in map(json.loads, (folder / "index.jsonl").read_text().splitlines()):
        for name, (size, _, *begin) in line["files"].items():
            found[name] = ((folder / line["pack"]).read_bytes()[begin[0]:begin[0] + size] if begin else (folder / name).read_bytes())
    return found


def damage(folder, name):
    """Change a byte in the middle of a member."""
    (line,) = [line for line in map(json.loads, (folder / "index.jsonl").read_text().splitlines()) if name in line["files"]]
    size, _, begin = line["files"][name]
    with open(folder / line["pack"], "r+b") as pack:
        pack.seek(begin + size // 2)
        byte = pack.read(1)
        pack.seek(begin + size // 2)
        pack.write(bytes([byte[0] ^ 255]))


def made(folder):
    return json.loads((folder / "manifest.json").read_text())["made"]["units"]


def test_the_same_bytes_in_another_container(smoke, smoke_outputs, outputs):
    run, files = outputs / "smoke", smoke_outputs / "smoke"
    for step in STEPS:
        assert members(run / step / PACK) == images(run / step) == images(files / step)
        assert len(list((run / step).rglob("*.*"))) == 3 + 1 * (step in ("make_lpcam", "make_sem_seg_labels"))
    for file in ("eval_cam/scores.json", "eval_sem_seg/scores.json", "train_irn/weights.safetensors"):
        assert (run / file).read_bytes() == (files / file).read_bytes()
    for layout in ("files", "packed"):
        assert set(actions(smoke(f"artifacts.layout={layout}")).values()) == {"skip"}
        assert {step.state for step in smoke(f"artifacts.layout={layout}").status()} == {"done"}
    assert all(step.ok for step in smoke().verify())


@pytest.mark.parametrize("step", STEPS)
def test_what_the_plan_expects_on_disk(step, smoke, outputs):
    measured = json.loads((outputs / "smoke" / step / "manifest.json").read_text())["disk_mb"]
    shutil.rmtree(outputs / "smoke" / step)
    expected = {planned.name: planned for planned in smoke(PACKED).plan()}[step].expected.disk_mb
    assert measured / 1.5 < expected < 1.5 * measured


@pytest.mark.parametrize("step", [pytest.param("make_lpcam", marks=pytest.mark.slow), "cam_to_ir_label"])
def test_an_exception_in_the_middle(step, smoke, outputs):
    before = remove(outputs, step)
    with interrupted(20):
        smoke(PACKED).run()
    assert actions(smoke())[step] == "continue"
    smoke(PACKED).run()
    assert contents(outputs / "smoke" / step) == before


@pytest.mark.slow
def test_several_processes(smoke, outputs):
    before = {step: images(outputs / "smoke" / step) for step in STEPS}
    for step in STEPS:
        shutil.rmtree(outputs / "smoke" / step)
    together(outputs, PACKED)
    assert {step: images(outputs / "smoke" / step) for step in STEPS} == before
    assert len(members(outputs / "smoke/make_cam/packs/1-of-2.tar")) == 16


@pytest.mark.parametrize(("step", "name"), [("make_lpcam", "fg_only/train_0003.npy"), ("make_sem_seg_labels", "train_0003.png")])
@pytest.mark.parametrize("layout", ["packed", "files"])
def test_what_verify_finds_is_made_again_alone(step, name, layout, smoke, outputs):
    folder = outputs / "smoke" / step
    before = images(folder)
    damage(folder, name)
    broken = {file: wrong for found in smoke().verify() for file, wrong in found.broken.items()}
    assert list(broken) == [f"{folder}/{name} (in {PACK})"] and "is not what was written" in broken[f"{folder}/{name} (in {PACK})"]
    assert (folder / "packs" / f"{name}.damaged").exists()
    planned = {planned.name: planned for planned in smoke().plan()}[step]
    assert (planned.action, planned.to_do, planned.why) == ("continue", 1, "1 artifact broken")
    smoke(f"artifacts.layout={layout}").run()
    assert made(folder) == 1 and images(folder) == before and not list(folder.rglob("*.damaged"))
    assert (folder / name).exists() == (layout == "files") and (folder / "packs/0-of-1-2.tar").exists() == (layout == "packed")
    assert all(step.ok for step in smoke().verify()) and set(actions(smoke()).values()) == {"skip"}


def test_a_damaged_member_stops_the_step_that_reads_it_once(smoke, outputs):
    damage(outputs / "smoke/make_sem_seg_labels", "train_0003.png")
    call = ("eval_sem_seg_pass=true", "force=true")
    with pytest.raises(WsssError, match=r"train_0003.png \(in packs.* is not what was written.*") as caught:
        smoke(*call).run()
    assert "renamed to train_0003.png.damaged: the same command makes it again" in str(caught.value)
    before = (outputs / "smoke/eval_sem_seg/scores.json").read_bytes()
    smoke(PACKED).run()
    smoke(*call).run()
    assert made(outputs / "smoke/make_sem_seg_labels") == 1
    assert (outputs / "smoke/eval_sem_seg/scores.json").read_bytes() == before


def test_a_pack_that_is_cut_off(smoke, outputs):
    folder = outputs / "smoke/make_sem_seg_labels"
    before = images(folder)
    os.truncate(folder / PACK, (folder / PACK).stat().st_size // 2)
    lacking = {planned.name: planned for planned in smoke().plan()}["make_sem_seg_labels"].to_do
    assert 8 < lacking < 16
    smoke(PACKED).run()
    assert made(folder) == lacking and images(folder) == before


def test_shards(smoke, outputs):
    folder, flag = outputs / "smoke/make_sem_seg_labels", "make_sem_seg_pass=true"
    before = images(folder)
    shutil.rmtree(folder)
    smoke(flag, PACKED, "shard=prepare").run()
    smoke(flag, PACKED, "shard=1/2").run()
    smoke(flag, "shard=0/2").run()   # this one a file each
    smoke(flag, PACKED).run()
    assert made(folder) == 0 and images(folder) == before
    assert len(members(folder / "packs/1-of-2.tar")) == 12 == len(list(folder.glob("*.png")))


def test_taken_by_another_run(smoke, outputs, tmp_path):
    """The packs are links; what the other run makes besides goes into packs of its own."""
    damage(outputs / "smoke/make_cam", "val_0003.npy")
    smoke("make_cam_pass=true").verify()
    before = contents(outputs / "smoke/make_cam")
    other = Pipeline.compose(*SMOKE, f"outputs={outputs}", "name=other", "reuse_from=[smoke]", "to_step=make_cam", PACKED)
    assert [planned.to_do for planned in other.plan()][1] == 1
    other.run()
    theirs, ours = outputs / "smoke/make_cam", outputs / "other/make_cam"
    assert os.path.samefile(theirs / PACK, ours / PACK) and contents(theirs) == before
    assert list(members(ours / "packs/0-of-1-2.tar")) == ["val_0003.npy"] and len(images(ours)) == 32
    assert all(step.ok for step in other.verify())
    manifest = json.loads((ours / "manifest.json").read_text())
    assert list(manifest["files"]) == ["index.jsonl"] and manifest["disk_mb"] > 0


def test_a_pack_is_taken_beside_one_of_the_same_name(smoke, outputs):
    shutil.copytree(outputs / "smoke/train_cam", outputs / "other/train_cam")
    shutil.copy(outputs / "smoke/run.json", outputs / "other/run.json")
    other = ("name=other", "to_step=make_cam", PACKED)
    with interrupted(8):
        smoke(*other).run()
    smoke(*other, "reuse_from=[smoke]").run()
    assert images(outputs / "other/make_cam") == images(outputs / "smoke/make_cam")
    assert len(members(outputs / "other/make_cam" / PACK)) == 8
    assert os.path.samefile(outputs / "other/make_cam/packs/0-of-1-2.tar", outputs / "smoke/make_cam" / PACK)


def test_whatever_else_reads_maps_and_masks(smoke, smoke_outputs, outputs, tmp_path):
    """export_voc, export_official, import_official, report, sweep: as from files."""
    files = Pipeline.compose(*SMOKE, f"outputs={shutil.copytree(smoke_outputs, tmp_path / 'files')}")
    for number, pipeline in enumerate((smoke(), files)):
        for action in ("export_voc", "export_official"):
            pipeline.config.export_to = str(tmp_path / f"{action}{number}")
            getattr(pipeline, action)()
    exported = [contents(tmp_path / f"export_voc{number}") for number in (0, 1)]
    assert exported[0] == exported[1] and len(exported[0]) > 60
    call = ("name=taken", "action=import_official", f"import_from={tmp_path / 'export_official0'}", "steps=[make_lpcam,eval_cam,make_sem_seg_labels]")
    taken = [smoke(f"name={layout}", *call[1:], f"artifacts.layout={layout}") for layout in ("files", "packed")]
    for pipeline in taken:
        pipeline.import_official()
        assert all(step.ok for step in pipeline.verify())
    assert images(outputs / "packed/make_sem_seg_labels") == images(outputs / "smoke/make_sem_seg_labels")
    for step in ("make_lpcam", "make_sem_seg_labels"):
        assert images(outputs / "files" / step) == members(outputs / "packed" / step / PACK)
    results = [pipeline.tune() for pipeline in (smoke("tune.beta=[10]", "tune.exp_times=[4]"), Pipeline.compose(
        *SMOKE, f"outputs={tmp_path / 'files'}", "tune.beta=[10]", "tune.exp_times=[4]"))]
    assert results[0] == results[1]
    pages = [pipeline.report().read_text() for pipeline in (smoke(), files)]
    assert pages[0].count("data:image") == pages[1].count("data:image") > 50
