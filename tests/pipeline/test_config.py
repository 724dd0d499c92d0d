"""Bad configuration fails at once, names the key and says what is allowed."""

import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec

import pytest
import torch
from omegaconf import OmegaConf

import run_pipeline
from pipeline import Pipeline, actions, config
from pipeline.actions import _finished
from pipeline.actions._finished import recorded_method
from pipeline.cluster import machine
from pipeline.cluster.machine import MOST_LOADERS, choose_device, loader_processes
from pipeline.helptext import help_text
from pipeline.plan.selection import selected
from tests import compositions
from tests.conftest import ROOT
from wsss.cams.cam import CAM
from wsss.errors import ConfigError
from wsss.families import FAMILIES, BaseMethod


def typed(*overrides: str):
    return config.typed(config.compose(overrides))


def test_the_default_is_the_clean_recipe_on_the_embedded_data_from_installed_weights():
    default = typed()
    assert (default.recipe_name, default.data.kind, default.backbone.name) == ("clean", "shapes", "tf_efficientnet_lite0")
    assert default.backbone.starts_from_weights and not typed("backbone=tiny").backbone.starts_from_weights
    assert not typed("backbone.pretrained=false").backbone.starts_from_weights
    assert default.steps == ["train_cam", "make_cam", "make_lpcam", "eval_cam", "cam_to_ir_label", "train_irn",
                             "make_sem_seg_labels", "eval_sem_seg"]
    assert default.run_name == "shapes-clean" and typed("recipe=official").run_name == "shapes-official"
    assert typed("experiment=smoke").run_name == "smoke" and typed("name='sweep/beta=8'").run_name == "sweep/beta=8"
    assert default.train_cam.crop_size == default.data.image_size


@pytest.mark.parametrize("overrides", [
    (), ("experiment=smoke", "backbone=tiny", "data.n_train=3", "name=a", "name=b", "train_cam.lr=1e-3", "make_cam.scales=[1.0,0.5]"),
    ("seed=3", "data=voc12", "data.root=x y", "cam=gradcam", "cam.stage=1", "eval_cam.threshold={make_cam: 0.2}", "+more.key=2", "~train_irn.radius"),
    ("refiner=crf", "refiner.radius=1"), ("backbone.pretrained=null",), ("model.backbone=x",), ("train_cam.epochs=many",), ("name=a,b",),
    ("data=shape", "sed=1"), ("seed=[",)], ids=" ".join)
def test_the_compositions_of_tests_are_those_of_hydra(overrides, monkeypatch):
    """In values, types and flags (not in the time of day that Hydra remembers), or in the words of the error; also the second time."""
    def nodes(node):
        return [(replace(node._metadata, resolver_cache={}), [(key, nodes(child)) for key, child in node._content.items()]
                 if OmegaConf.is_dict(node) and not node._is_none() and not node._is_missing() else str(node))]

    def result():
        try:
            return nodes(config.compose(overrides))
        except ConfigError as error:
            return str(error)
    kept, again = result(), result()
    monkeypatch.setattr(config, "_composed", compositions.by_hydra)
    assert result() == kept == again


@pytest.mark.parametrize(("overrides", "message"), [
    (["make_lpcam.n_cluster=8"], r"make_lpcam.n_cluster: there is no such key; did you mean 'n_clusters'\? \(allowed here: .*cam_threshold"),
    (["model.backbone=resnet18"], "^model: there is no such key; did you mean 'backbone'"),
    (["model.pretrained=false"], "^model: there is no such key; did you mean 'backbone.pretrained'"),
    (["train_cam.network=resnet18"], "^train_cam.network: there is no such key; did you mean 'backbone.network'"),
    (["foo.radius=x"], "^foo: there is no such key; did you mean 'refiner.radius' or 'train_irn.radius' or 'train_psa.radius' or 'make_ins_seg_labels.radius'"),
    (["foo.method=cam"], r"^foo: there is no such key \(allowed"), (["foo.split=val"], r"^foo: there is no such key \(allowed"),
    (["backbone.pretrained=null"], "^backbone.pretrained=null is not possible: expected a value$"),
    (["backbone=convnext_tiny"], r"^backbone=convnext_tiny: .*\(allowed: .*, timm backbone.network=..., tiny, vgg16"),
    (["sed=1"], r"sed: there is no such key; did you mean 'seed'\?"),
    (["data.n_trian=3"], r"data.n_trian: there is no such key; did you mean 'n_train'\?"),
    (["data=folder", "data.root=x", "data.n_train=3"], "data.n_train: there is no such key"),
    (["train_cam.epochs=many"], "train_cam.epochs: .*'many'.*Integer"),
    (["precision=float16"], r"precision=float16: there is no such choice; did you mean 'float32'\? \(allowed: auto, float32, bf16\)"),
    (["backbone=resnet19"], "backbone=resnet19: there is no such option; did you mean 'resnet18'"),
    (["action=pla"], r"action=pla: there is no such choice; did you mean 'plan'\? \(allowed: check_labels, compare, export, export_official, export_onnx, export_voc, export_voc_test, "),
    (["recipe=clena"], "recipe=clena: there is no such option; did you mean 'clean'"),
    (["data=shape"], r"data=shape: there is no such option; did you mean 'shapes'\? \(allowed: .*folder, .*shapes"),
    (["cam=cma"], r"cam=cma: there is no such option; did you mean 'cam'\? \(allowed: .*cam"),
    (["cam.stage=3"], r"cam.stage: there is no such key \(allowed here: none\)"), (["+cam.stage=3"], "cam.stage: there is no such key"),
    (["=3"], "override"),
    (["actoin=plan"], r"actoin: there is no such key; did you mean 'action'\?"),
    (["expriment=smoke"], r"expriment: there is no such key; did you mean 'experiment'\? \(allowed here: experiment, recipe, action, (?!.*recipe_name)"),
    (["mak_cam_pass=true"], r"did you mean 'make_cam_pass'\? \(allowed here: train_cam_pass, "),
    (["make_sem_seg_labels_pass=true"], r"did you mean 'make_sem_seg_pass'\?"),
    (["make_sem_seg.beta=8"], r"did you mean 'make_sem_seg_labels'\?"),
    (["eval_cam.threshold.make_lpcm=0.1"], r"eval_cam.threshold.make_lpcm: there is no such key; did you mean 'make_lpcam'\?"),
    (["logger=tensorbord"], r"did you mean 'tensorboard'\? \(allowed: tensorboard, wandb\)"),
    (["+foo=1"], r"foo: there is no such key"), (["++sed=1"], r"sed: there is no such key; did you mean 'seed'\?"),
    (["+train_cam.epoch=1"], r"train_cam.epoch: there is no such key; did you mean 'epochs'\?"),
    (["plan"], r"'plan' is not a setting of the form KEY=VALUE; did you mean action=plan\? \(see --help"),
    (["make_lpcm"], r"did you mean make_lpcam_pass=true\?"), (["hlep"], r"did you mean --help\?"),
])
def test_what_does_not_exist_is_named(overrides, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        typed(*overrides)


@pytest.mark.parametrize(("overrides", "message"), [
    (["data=folder"], "data.root has no value: set data.root="),
    (["~cam"], "cam has no value: set cam="),
    (["cam.method=layercam"], "cam.method='layercam' is not possible: expected cam; choose the method by cam=NAME"),
    (["train_cam.epochs=0"], "train_cam.epochs=0 is not possible: expected null or at least 1"),
    (["data.min_side=300", "data.max_side=200"], "data.min_side=300 is not possible: expected null or from 16 pixels to data.max_side=200"),
    (["make_cam.scales=[]"], "make_cam.scales"),
    (["make_cam.scales=[1.0,0.0]"], "each above 0"),
    (["cam_to_ir_label.conf_fg=0.4"], "both null or both set"),
    (["cam_to_ir_label.conf_fg=0.2", "cam_to_ir_label.conf_bg=0.3"], "conf_bg <= conf_fg"),
    (["eval_cam.threshold.make_cam=2"], "eval_cam.threshold.make_cam=2.0"),
    (["make_lpcam.background_low=0.95"], "at most make_lpcam.background_high=0.9"),
    (["data.image_size=98"], "data.image_size=98 is not possible: expected a multiple of 4, at least 32"),
    (["data.image_size=28"], "data.image_size=28 is not possible: expected a multiple of 4, at least 32"),
    (["train_cam.crop_size=31"], "train_cam.crop_size=31 is not possible: expected at least 32"),
    (["train_irn.crop_size=98"], "train_irn.crop_size=98 is not possible: expected a multiple of 4, the stride of the labels"),
    (["train_cam.steps=0"], "train_cam.steps=0 is not possible: expected null or at least 1"),
    (["train_irn.steps=9", "train_irn.epochs=2"], r"train_irn.steps=9 is not possible: expected null, or train_irn.epochs=null \(now 2\)"),
    (["recipe=official", "train_irn.radius=64"], "an eighth of train_irn.crop_size"),
    (["steps=[make_cam,train_cam]"], "in order"),
    (["steps=[train_cam,mak_cam]"], r"no step 'mak_cam'; did you mean 'make_cam'\?"),
    (["from_step=mak_cam"], r"from_step: there is no step 'mak_cam'; did you mean 'make_cam'\?"),
    (["experiment=irn", "to_step=make_lpcam"], "to_step: there is no step 'make_lpcam'; did you mean .* \\(allowed: train_cam, make_cam, eval_cam"),
    (["from_step=eval_cam", "to_step=make_cam"], "from_step='eval_cam' is not possible: expected a step not after to_step=make_cam"),
    (["experiment=irn", "seed_maps=make_lpcam"], "seed_maps='make_lpcam' is not possible: expected a step of this experiment before cam_to_ir_label that makes maps .make_cam"),
    (["name=../elsewhere"], "name='../elsewhere' is not possible"),
    (["threads=0"], "threads=0"),
    *[([f"{key}="], f"{key}='' is not possible: expected a value") for key in ("name", "outputs", "from_step", "to_step")],
    (["workers=-1"], "workers=-1 is not possible: expected null, or 0 or more"),
])
def test_what_cannot_be_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        typed(*overrides)


def test_from_step_to_step_and_flags_choose_steps():
    assert selected(typed("from_step=train_irn")) == ("train_irn", "make_sem_seg_labels", "eval_sem_seg")
    assert selected(typed("to_step=make_cam")) == ("train_cam", "make_cam")
    assert selected(typed("from_step=eval_cam", "to_step=eval_cam")) == ("eval_cam",)
    with pytest.raises(ConfigError, match="from_step=train_irn and to_step=train_irn together with train_cam_pass=false: select the steps by"):
        selected(typed("from_step=train_irn", "to_step=train_irn", "train_cam_pass=false"))
    assert selected(typed("make_cam_pass=true", "eval_cam_pass=true")) == ("make_cam", "eval_cam")
    assert "train_irn" not in selected(typed("train_irn_pass=false"))
    with pytest.raises(ConfigError, match="this experiment has no make_lpcam: its steps are train_cam, make_cam, eval_cam"):
        selected(typed("experiment=irn", "make_lpcam_pass=true"))


@pytest.fixture
def door(tmp_path, monkeypatch, capfd):
    """`door(*words)`: the exit code, the output and the errors of `python run_pipeline.py *words` in `tmp_path`, in this process."""
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["run_pipeline.py", *words])
        code, said = 0, ""
        try:
            run_pipeline.main()
        except SystemExit as end:   # with a text Python prints that and ends with 1
            code, said = (1, f"{end.code}\n") if isinstance(end.code, str) else (end.code or 0, "")
        output, errors = capfd.readouterr()
        return code, output, errors + said
    return call


@pytest.mark.parametrize(("override", "message"), [("train_cam.epochs=0", "train_cam.epochs=0 is not possible"),
                                                   ("make_cam.scale=[1]", "error: make_cam.scale: there is no such key; did you"),
                                                   ("device=cuda", "device=cuda: torch sees no CUDA device"),
                                                   ("cam_to_ir_label.crf_backend=pydensecrf", "the package is not installed")])
def test_an_impossible_value_is_refused_in_one_line(door, tmp_path, override, message):
    if override == "device=cuda" and torch.cuda.is_available() or "pydensecrf" in override and find_spec("pydensecrf"):
        pytest.skip("possible here")
    code, _, errors = door("experiment=smoke", override)
    assert code == 1 and message in errors
    assert len(errors.splitlines()) == 1 and "smoke" not in {path.name for path in tmp_path.glob("outputs/*")}


def test_a_typo_is_named_beside_a_flag_of_hydra_too(door):
    code, _, errors = door("--cfg", "job", "sed=1")
    assert code == 1 and errors.startswith("error: sed: there is no such key; did you mean 'seed'?")


def test_what_is_printed_says_which_method_is_chosen(door):
    code, output, _ = door("--cfg", "job")
    assert code == 0 and "\ncam:\n  method: cam\n" in output and typed().cam == CAM()


@dataclass
class Two(BaseMethod):
    a: int
    b: int


@dataclass
class Odd(BaseMethod):
    a: complex


def test_settings_of_a_type_that_a_configuration_lacks_are_refused(monkeypatch):
    monkeypatch.setattr(config, "load_method", lambda family, name: Odd)
    with pytest.raises(ConfigError, match=r"cam: the settings of .*test_config.Odd cannot be used: (?!.*object_type).*complex"):
        config.method_schema("cam", "test_config")


def test_a_finished_step_keeps_its_method(monkeypatch):
    """Settings that were added to the method later have the value of this call."""
    monkeypatch.setattr(_finished, "load_method", lambda family, name: Two)
    recorded = {"method": "test_config", "a": 5}
    assert recorded_method("cam", Two(1, 2), recorded) == Two(5, 2) and recorded_method("cam", CAM(), recorded | {"b": 6}) == Two(5, 6)
    with pytest.raises(ConfigError, match="cam=test_config has the setting b since this run was made: choose cam=test_config on"):
        recorded_method("cam", CAM(), recorded)


def test_the_shell_completes_keys_and_choices(door, monkeypatch):
    """As bash asks after `eval "$(python run_pipeline.py -sc install=bash)"`."""
    def completed(line: str) -> list[str]:
        for name, value in {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_CWORD": "1"}.items():
            monkeypatch.setenv(name, value)
        code, output, errors = door("-sc", "query=bash")
        assert code == 0, errors
        return output.split()
    assert "data=voc12" in completed("python run_pipeline.py data=")
    assert completed("python run_pipeline.py make_lpcam.n_cl") == ["make_lpcam.n_clusters="]


def test_help_is_short(tmp_path):
    words = [sys.executable, str(ROOT / "run_pipeline.py"), "--help", "experiment=smoke"]
    output = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert output == help_text() + "\n" and len(output.splitlines()) < 42 + len(FAMILIES) + len(actions.names())   # a line for each
    assert "experiment=smoke" in output and "train_cam_pass" in output and "  data: coco14, cub, folder, ilsvrc, openimages, shapes, voc12\n" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("features, precision", [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"),
                                                 ({"sve_bf16": True, "neon": True}, "bf16"),
                                                 ({"avx512_f": True, "avx512_bf16": False}, "float32"), ({}, "float32")])
def test_automatic_precision_is_that_of_the_cpu(features, precision, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "nowhere")   # so torch is asked
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    pipeline = Pipeline.compose("precision=auto", "device=cpu", f"outputs={tmp_path}")
    assert pipeline.config.precision.value == precision
    assert OmegaConf.to_container(pipeline.composed, resolve=True, enum_to_str=True)["precision"] == precision   # what is recorded


@pytest.mark.parametrize("flags, version, bf16", [
    ("fpu avx512f avx512_bf16", "6.1.0-13-amd64", True), ("fpu amx_bf16", "6.1.0", True), ("fpu avx2", "6.1.0", False),
    ("fpu avx512f", "5.3.1", False), ("fpu avx512f", "4.19.0", None), ("fpu avx2", "4.19.0", False), ("", "6.1.0", None)])
def test_what_linux_says_of_the_cpu(flags, version, bf16, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: x\n{'flags' if flags else 'Features'}\t\t: {flags}\nbugs\t\t: none\n")
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "release", lambda: version)
    asked = []
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: asked.append(1) or {"avx512_bf16": True})
    assert machine.cpu_has_bf16() is (bf16 is not False) and bool(asked) is (bf16 is None)


def test_a_gpu_is_looked_for_where_there_is_a_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine, "DRIVERS", (tmp_path / "nowhere",))
    assert choose_device("auto") == "cpu" and choose_device("cuda") == "cuda"
    monkeypatch.setattr(machine, "DRIVERS", (tmp_path / "nowhere", tmp_path))
    assert choose_device("auto") == "cuda" and choose_device("cpu") == "cpu"


def test_precision_is_automatic_for_the_embedded_default_alone(monkeypatch, tmp_path):
    told = machine.cpu_has_bf16()
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "nowhere")
    assert told is machine.cpu_has_bf16()   # Linux says of this CPU what torch says
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: True)
    for words, precision in (((), "bf16"), (("precision=float32",), "float32"), (("experiment=smoke",), "float32"),
                             (("recipe=official",), "float32"), (("data=folder", "data.root=x", "name=n"), "float32")):
        assert Pipeline.compose("device=cpu", f"outputs={tmp_path}", *words).config.precision.value == precision


def test_loader_processes_are_as_many_as_asked_for_or_all_cores_where_a_gpu_would_wait(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert [loader_processes(3, None, device) for device in (cpu, gpu)] == [3, 3] and loader_processes(0, None, gpu) == 0
    assert loader_processes(None, None, cpu) == 0 and loader_processes(None, 4, gpu) == 4
    assert [loader_processes(None, None, gpu, processes) for processes in (1, 2, 24)] == [12, 6, 1]
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    assert [loader_processes(None, None, gpu, processes) for processes in (1, 2)] == [12, 5]
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert loader_processes(None, None, gpu) == MOST_LOADERS
    assert typed().workers is None
