"""What the plan says a step will need, against what steps took, and how it grows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import compose, typed
from pipeline.order import BY_NAME
from pipeline.plan.lists import derive_lists, setup_of
from steps.runtime import needs
from steps.runtime.datasets import open_dataset
from steps.runtime.needs import MIB
from steps.step import Lists, Needs
from tests.conftest import SMOKE
from wsss.cams.cam import CAM
from wsss.data.dataset import Dataset

MEASURED_PROCESS = needs._process.__wrapped__   # without its cache: Pipeline keeps the value of the first plan
# The network and the trainings of which the numbers below are: every layer of a ResNet-50 from scratch learns.
RESNET50 = ("backbone=resnet50", "backbone.pretrained=false", "train_cam.freeze_early=false", "train_cam.batch_size=4",
            "train_cam.epochs=20", "train_irn.batch_size=4", "train_irn.epochs=6", "refiner=walk")
PHOTOGRAPHS = ((375, 500), (500, 375), (333, 500), (500, 333), (400, 500), (500, 442), (281, 500))


@pytest.fixture(autouse=True)
def process(monkeypatch):
    """A process of 700 MiB, whatever pytest has grown to."""
    monkeypatch.setattr(needs, "_process", lambda: 700 * MIB)


@pytest.fixture
def sized(monkeypatch):
    """Ids of whose size was asked; sizes are those of PHOTOGRAPHS in turn, and there are no files."""
    asked: list[str] = []

    def size(self: Dataset, image_id: str) -> tuple[int, int]:
        asked.append(image_id)
        return PHOTOGRAPHS[int(image_id) % len(PHOTOGRAPHS)]
    monkeypatch.setattr(Dataset, "size", size)
    return asked


def dataset(n_images: int, n_classes: int = 20) -> Dataset:
    """`n_images` images of one or two classes, all with masks; every seventh of the ids has the same size."""
    ids = tuple(f"{i:05}" for i in range(n_images))
    return Dataset(name="fake", root=Path("nowhere"), classes=tuple(f"class{i}" for i in range(n_classes)),
                   lists={"train": ids, "val": (), "all": ids},
                   labels={image_id: (i % 3, 3 + i % 5)[:1 + i % 2] for i, image_id in enumerate(ids)},
                   image_files=dict.fromkeys(ids, "image"), mask_files=dict.fromkeys(ids, "mask"))


def expected(data: Dataset, step: str, *overrides: str, device: str = "cpu") -> Needs:
    config = typed(compose(["data=folder", "data.root=nowhere", "data.image_size=512", "threads=1", *RESNET50, *overrides]))
    return of(step, config, data, derive_lists(config, data)[step], device)


def of(step: str, config: Any, data: Dataset, lists: Lists, device: str = "cpu") -> Needs:
    return BY_NAME[step].needs(setup_of(config, data, step, lists=lists, device=device))


@pytest.fixture(scope="module")
def smoke_needs(smoke_outputs) -> dict[str, tuple[Needs, dict]]:
    """For each step of the finished run the expected needs, of the process as it was when it planned, and the manifest."""
    config = typed(compose([*SMOKE, f"outputs={smoke_outputs}"]))
    data = open_dataset(config.data)
    return {name: (of(name, config, data, lists), json.loads((config.folder / name / "manifest.json").read_text()))
            for name, lists in derive_lists(config, data).items()}


def within(factor: float, value: float, truth: float) -> bool:
    return truth / factor < value < truth * factor


def header_without_metadata(file: Path) -> dict:
    """Name, type, shape and place of each tensor."""
    with open(file, "rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return {key: value for key, value in header.items() if key != "__metadata__"}


def test_a_finished_run_took_what_was_expected(smoke_needs):
    assert len(smoke_needs) == 8
    for name, (need, manifest) in smoke_needs.items():
        assert within(2, need.memory_mb, manifest["peak_memory_mb"]["host"]), name
        if manifest["disk_mb"] > 0.1:
            assert within(2, need.disk_mb, manifest["disk_mb"]), name


@pytest.mark.parametrize("name", ["train_cam", "train_irn"])
def test_weights_and_training_state_are_exact(smoke_needs, smoke_outputs, name):
    """But for the names of the tensors, which are counted nowhere and 5 % of the files of this tiny network."""
    need, manifest = smoke_needs[name]
    names = sum(len(json.dumps(header_without_metadata(file))) for file in (smoke_outputs / "smoke" / name).glob("*.safetensors")) / MIB
    assert within(1.01, need.disk_mb + names, manifest["disk_mb"])


# VmHWM of single steps on 6 images of these sizes (8 with val), classifier from scratch, one thread, two cores
@pytest.mark.parametrize("step, measured, overrides", [
    ("train_cam", 2851, ["train_cam.batch_size=2"]),
    ("train_cam", 3378, ["train_cam.batch_size=4"]),
    ("train_cam", 1967, ["train_cam.batch_size=4", "train_cam.freeze_early=true", "recipe=official"]),
    ("train_irn", 1482, ["train_irn.batch_size=2"]),
    ("train_irn", 1921, ["train_irn.batch_size=4"]),
    ("make_cam", 1595, []),
    ("make_cam", 1010, ["make_cam.scales=[1.0]"]),
    ("make_cam", 1065, ["backbone=resnet18", "precision=bf16"]),
    ("make_lpcam", 1933, []),
    ("cam_to_ir_label", 854, []),
    ("make_sem_seg_labels", 1070, []),
    ("make_ins_seg_labels", 1259, ["experiment=irn_instances"]),
    ("eval_cam", 734, [])])
def test_images_and_resnet50(sized, step, measured, overrides):
    assert within(1.5, expected(dataset(6), step, *overrides).memory_mb, measured)


SEGMENTS = ("experiment=folder_seg", "backbone=tf_efficientnet_lite0", "steps=[train_seg,infer_seg,eval_seg]", "train_seg.labels=gt")


@pytest.mark.parametrize(("measured", "overrides"), [(2854, ["infer_seg.crf=false"]), (3686, [])])
def test_a_photograph_of_6000_px_is_segmented_in_windows(sized, monkeypatch, measured, overrides):
    """VmHWM of an image of 6000 x 4000 with 21 labels and the defaults, two cores. As a whole its probabilities alone take 2 GB."""
    monkeypatch.setattr(Dataset, "size", lambda self, image_id: (4000, 6000))
    windows, whole = (expected(dataset(2), "infer_seg", *SEGMENTS, *overrides, f"infer_seg.window={side}") for side in (1024, "null"))
    assert within(1.5, windows.memory_mb, measured) and whole.memory_mb > 8 * measured
    larger = expected(dataset(2), "infer_seg", *SEGMENTS, *overrides, "infer_seg.window=2048")
    assert 1.5 * windows.memory_mb < larger.memory_mb < whole.memory_mb


def test_masks_of_photographs_without_and_with_a_crf(sized):
    plain, crf = (expected(dataset(6), "infer_seg", *SEGMENTS, f"infer_seg.crf={crf}") for crf in ("false", "true"))
    assert within(1.01, crf.disk_mb, 2 * plain.disk_mb) and crf.memory_mb > plain.memory_mb
    one, two = (expected(dataset(6), "infer_seg", *SEGMENTS, f"infer_seg.flip={flip}", "infer_seg.crf=false", device="cuda") for flip in ("false", "true"))
    assert within(1.2, two.gpu_mb, 2 * one.gpu_mb)   # five images at once, or ten with their mirror images


def test_maps_by_gradients_keep_the_layers_after_their_stage(sized):
    cam, last, fine = (expected(dataset(6), "make_cam", *words) for words in (["cam=cam"], ["cam=gradcam"], ["cam=gradcam", "cam.stage=1"]))
    assert last.disk_mb == cam.disk_mb and within(1.1, fine.disk_mb, 16 * cam.disk_mb)
    pixels = 4 * 400 * 500   # of the largest image at scale 2, and the mirror image; each block of layer2 keeps at least its output
    assert last.memory_mb < cam.memory_mb + 50 and fine.memory_mb - cam.memory_mb > 2 * pixels / 64 * 4 * 512 * 4 / MIB


def test_a_setting_of_a_method_that_is_not_recorded_does_not_count():
    def recorded(*words: str) -> dict:
        config = typed(compose(["cam=scorecam", *words]))
        return BY_NAME["make_cam"].identity(setup_of(config, dataset(3), "make_cam"))["cam"]
    assert recorded() == recorded("cam.batch_size=5") == {"method": "scorecam", "definition": "paper"}


def test_what_a_method_that_asks_for_values_needs_is_unknown(sized, monkeypatch):
    monkeypatch.setattr(CAM, "maps", lambda self, net, features_of, pair, classes: features_of(pair) * float(pair.max()))
    assert expected(dataset(6), "make_cam") is None


@pytest.mark.parametrize("step", ["make_cam", "make_lpcam", "cam_to_ir_label", "make_sem_seg_labels"])
def test_twice_the_images_are_twice_the_disk_and_the_same_memory(sized, step):
    few, many = (expected(dataset(n), step, "make_lpcam.max_features_per_class=1000") for n in (700, 1400))
    assert many.disk_mb == pytest.approx(2 * few.disk_mb, rel=0.1)
    assert many.memory_mb == pytest.approx(few.memory_mb, rel=0.1)


@pytest.mark.parametrize("step", ["train_cam", "train_irn"])
def test_twice_the_crop_is_four_times_the_activations(sized, step):
    memory = [expected(dataset(100), step, f"{step}.crop_size={crop}").memory_mb for crop in (512, 1024, 2048)]
    assert memory[2] - memory[1] == pytest.approx(4 * (memory[1] - memory[0]), rel=0.05)


def test_the_moments_of_the_optimizer_are_on_disk(sized):
    adamw, momentum, plain = (expected(dataset(100), "train_cam", *overrides).disk_mb for overrides in (
        ["train_cam.optimizer=adamw"], ["train_cam.optimizer=sgd", "train_cam.momentum=0.9"],
        ["train_cam.optimizer=sgd", "train_cam.momentum=0.0"]))
    assert adamw - momentum == pytest.approx(momentum - plain)
    assert momentum - plain == pytest.approx(89.9, rel=0.01)   # ResNet-50 without its last layer: 23.5 million numbers


def test_max_features_per_class_bounds_the_memory_of_the_prototypes(sized):
    def memory(n_images: int, limit: int) -> float:
        return expected(dataset(n_images), "make_lpcam", f"make_lpcam.max_features_per_class={limit}", "make_cam.scales=[1.0]").memory_mb
    assert memory(2_000, 10_000) == pytest.approx(memory(20_000, 10_000), rel=0.01)
    assert memory(20_000, 1_000_000) > 10 * memory(20_000, 10_000)
    one_more = memory(20_000, 110_000) - memory(20_000, 100_000)
    assert one_more == pytest.approx(3.5 * 10_000 * 2048 * 4 / MIB, rel=0.01)   # two samples with a quarter to spare, one copy


def test_a_sample_of_many_images_is_looked_at(sized):
    data = dataset(10_000)
    for step in ("train_cam", "make_cam", "make_lpcam", "eval_cam", "cam_to_ir_label", "train_irn", "make_sem_seg_labels",
                 "eval_sem_seg", "make_ins_seg_labels", "eval_ins_seg"):
        sized.clear()
        need = expected(data, step, *["experiment=irn_instances"] * ("_ins_seg" in step))
        assert len(sized) <= 2 * needs.SAMPLE, step
        assert need.disk_mb > 0 and need.memory_mb > 700, step


def test_a_larger_image_takes_more(sized, monkeypatch):
    small = expected(dataset(7), "cam_to_ir_label").memory_mb
    monkeypatch.setattr(Dataset, "size", lambda self, image_id: (3000, 4000))
    large, shrunk = (expected(replace(dataset(7), max_side=side), "cam_to_ir_label") for side in (None, 500))
    assert large.memory_mb - small == pytest.approx(12e6 * 800 / MIB, rel=0.2)   # two classes and background: 800 bytes a pixel
    assert shrunk.memory_mb == small   # below what earlier steps leave


def test_nothing_to_score_needs_nothing_of_its_own_but_the_process_which_is_measured(sized):
    config = typed(compose(["data=folder", "data.root=nowhere"]))
    need = of("eval_cam", config, dataset(10), {"scored": (), "val": ()})
    assert need.disk_mb < 0.1 and need.memory_mb < 1000
    assert 300 * MIB < MEASURED_PROCESS() < 64 * 1024 * MIB


def test_every_image_counts_for_the_size_of_the_maps_though_only_some_are_looked_at(sized):
    data = dataset(2 * needs.SAMPLE)
    many = replace(data, labels={image_id: tuple(range(2 * (i % 2))) for i, image_id in enumerate(data.lists["train"])})   # 0, 2, 0, 2
    one = replace(data, labels=dict.fromkeys(data.lists["train"], (0,)))   # as many classes in all
    assert expected(many, "make_cam").disk_mb == expected(one, "make_cam").disk_mb > 0
    assert len(set(sized)) < len(data.lists["train"])


STEPS = ("train_cam", "make_cam", "make_lpcam", "eval_cam", "cam_to_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg",
         "make_ins_seg_labels", "eval_ins_seg")


@pytest.mark.parametrize("step", STEPS)
def test_a_gpu_has_what_the_process_does_not(sized, step):
    """But for what both have: copies of a training's state, and the features that are clustered."""
    overrides = ["experiment=irn_instances"] if "_ins_seg" in step else ["make_lpcam.max_features_per_class=1000"]
    with_gpu, without = (expected(dataset(100), step, *overrides, device=device) for device in ("cuda", "cpu"))
    assert without.gpu_mb is None and with_gpu.disk_mb == without.disk_mb
    assert with_gpu.memory_mb <= without.memory_mb
    if step in ("eval_sem_seg", "eval_ins_seg"):   # NumPy alone
        assert with_gpu.gpu_mb == 0 and with_gpu.memory_mb == without.memory_mb
    else:
        assert with_gpu.gpu_mb > needs._WORKSPACE / MIB
        assert with_gpu.memory_mb < 1500


def test_the_state_of_a_training_is_on_the_gpu_and_its_copies_on_the_host(sized):
    """ResNet-50 without its last layer has 23.5 million numbers: 89.9 MiB in float32."""
    momentum, adamw = (expected(dataset(100), "train_cam", "train_cam.parts=1", *overrides, device="cuda") for overrides in (
        ["train_cam.optimizer=sgd", "train_cam.momentum=0.9"], ["train_cam.optimizer=adamw"]))
    assert adamw.gpu_mb - momentum.gpu_mb == pytest.approx(89.9, rel=0.01)
    assert adamw.memory_mb - momentum.memory_mb == pytest.approx(2 * 89.9, rel=0.01)


@pytest.mark.parametrize("step", ["train_cam", "train_irn"])
def test_on_a_gpu_twice_the_crop_is_four_times_the_activations_too(sized, step):
    memory = [expected(dataset(100), step, f"{step}.crop_size={crop}", device="cuda") for crop in (512, 1024, 2048)]
    one, two, three = (each.gpu_mb for each in memory)
    assert three - two == pytest.approx(4 * (two - one), rel=0.05)
    assert len({each.memory_mb for each in memory}) == 1


def test_a_gpu_works_on_several_images_at_once(sized, monkeypatch):
    one_image = []
    for at_once in (1, 4):
        monkeypatch.setattr(needs, "ON_GPU", at_once)
        one_image.append(expected(dataset(100), "cam_to_ir_label", device="cuda").gpu_mb - needs._WORKSPACE / MIB)
    assert one_image[1] == pytest.approx(4 * one_image[0])
    pixels = max(height * width for height, width in PHOTOGRAPHS)
    assert one_image[0] == pytest.approx(pixels * (600 + 100) / MIB)   # every second image is looked at: those of one class
