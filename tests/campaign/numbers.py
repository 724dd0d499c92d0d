"""Numbers: data, maps, weights and learning rates at the ends of what numbers can be, through every step that computes.

A trial ends in a result without NaN, or in our own error that names the step. Anything else fails it: another exception, a warning
of NumPy or torch, a number in a summary or an artifact that is not finite, a mask with a class that its image does not have.
"""

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline import Pipeline, actions
from pipeline.config import compose, typed
from steps.runtime.schedule import WEIGHTS
from tests.campaign.row import Row, Trial
from tests.networks import backbone_method
from wsss.cams.maps import pack
from wsss.cams.method import CamMethod, multi_scale_maps
from wsss.classifiers.plain import Plain
from wsss.data.images import read_mask, write_mask
from wsss.errors import WsssError

CLASSES = ("cat", "dog", "bird")
CAMS = ("train_cam", "make_cam", "make_lpcam", "eval_cam")
MASKS = ("cam_to_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg")
SEGMENTATION = ("train_seg", "infer_seg", "eval_seg")
ALL = ("train_cam", "train_recam", "make_cam", "make_lpcam", "eval_cam", "eval_faithfulness", "eval_loc", "cam_to_ir_label", "train_amn",
       "make_amn", "make_amn_lpcam", "eval_amn", "amn_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg", *SEGMENTATION,
       "make_ins_seg_labels")
REFINERS = ("none", "crf", "walk", "walk_crf", "walk_power", "best_on_val")
# Gradients, one pass for each mask, attention: what a method needs is in its check, so those that do not fit are not chosen
METHODS = ("signed_cam", "gradcam", "gradcam_pp", "xgradcam", "hirescam", "layercam", "eigencam", "backprop", "guided_backprop",
           "guided_gradcam", "iscam", "scorecam", "sscam", "smooth_gradcam_pp", "occlusion")
SMALL = ("data=folder", "name=run", "backbone=tiny", "data.image_size=32", "threads=1", "workers=0", "report.write=false", "log_level=error",
         "train_cam.epochs=1", "train_cam.batch_size=4", "train_recam.epochs=1", "train_amn.epochs=1", "train_amn.batch_size=4",
         "train_irn.epochs=1", "train_irn.batch_size=4", "make_cam.scales=[1.0,0.5]", "make_amn.scales=[1.0,0.5]", "make_lpcam.n_clusters=2",
         "train_seg.epochs=1", "train_seg.batch_size=4", "train_seg.absent_classes=true", "segmenter.width=8", "infer_seg.crf_iterations=1",
         "cam_to_ir_label.crf_iterations=1", "make_ins_seg_labels.centroid_iterations=20", "make_ins_seg_labels.exp_times=2",
         "eval_faithfulness.images=2", "eval_faithfulness.steps=3", "eval_faithfulness.randomised=1", "eval_loc.interval=0.1")


# What is tried.

@dataclass(frozen=True)
class Picture:
    """An image: its size, how its pixels are drawn, and its classes by number."""

    height: int
    width: int
    pixels: str = "square"       # square | constant | black | white | noise
    classes: tuple[int, ...] = (0,)
    mask: str = "square"         # square | background | ignore | full

    def draw(self, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 and its mask (H, W) uint8."""
        shape, rows = (self.height, self.width), slice(self.height // 4, max(1, self.height // 2))
        image = {"constant": np.full((*shape, 3), 77), "black": np.zeros((*shape, 3)), "white": np.full((*shape, 3), 255)}.get(
            self.pixels, draws.integers(0, 256 if self.pixels == "noise" else 60, (*shape, 3))).astype(np.uint8)
        mask = np.full(shape, {"ignore": 255, "full": 1 + self.classes[0] if self.classes else 0}.get(self.mask, 0), np.uint8)
        if self.pixels == "square":
            image[rows] += 150
        if self.mask == "square":
            for number, index in enumerate(self.classes):
                mask[rows, number * self.width // len(self.classes):] = 1 + index
        return image, mask


def write_folder(root: Path, pictures: Sequence[Picture], draws: np.random.Generator, n_val: int = 2) -> tuple[str, ...]:
    """Write a data set of `pictures`, the last of them val; returns the words of its configuration."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    lines, names = ["name,classes"], [f"i{number:02}" for number in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        image, mask = picture.draw(draws)
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        write_mask(root / "masks" / f"{name}.png", mask)
        lines.append(f"{name},{';'.join(CLASSES[index] for index in picture.classes)}")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    if n_val:
        (root / "val.txt").write_text("".join(f"{name}\n" for name in names[-n_val:]))
    return f"data.root={root}", *SMALL, f"data.val_fraction={0.2 if n_val else 0.0}"


NORMAL = (*[Picture(32, 40, classes=(index,)) for index in (0, 1, 2, 0)], Picture(40, 32, classes=(0, 1)), Picture(32, 32))
SETS: tuple[tuple[str, tuple[Picture, ...]], ...] = (
    ("constant images", tuple(Picture(24, 30, pixels, classes=(number % 3,)) for number, pixels in
                              enumerate(["constant", "black", "white", "constant", "black", "white"]))),
    ("1x1 images", tuple(Picture(1, 1, classes=(number % 3,), mask="full") for number in range(6))),
    ("a class with one image, one with none", (*[Picture(24, 30)] * 3, Picture(24, 30, classes=(1,)), *[Picture(24, 30)] * 2)),
    ("all images of one class", (Picture(24, 30, mask="full"),) * 6),
    ("no image has a class", (Picture(24, 30, classes=()),) * 6),
    ("masks of 255", (Picture(24, 30), *[Picture(24, 30, mask="ignore")] * 5)),
    ("long images", (Picture(4000, 100), *NORMAL[:4], Picture(100, 4000, classes=(1,)))),
)


def drawn_set(draws: np.random.Generator) -> tuple[str, tuple[Picture, ...]]:
    """A set of odd pictures among which some have classes."""
    def one(_: int) -> Picture:
        sides = draws.choice([1, 2, 3, 7, 24, 33, 64, 300], 2, p=[.15, .1, .1, .1, .2, .15, .1, .1])
        return Picture(*map(int, sides), str(draws.choice(["square", "constant", "black", "white", "noise"])),
                       tuple(np.flatnonzero(draws.random(3) < 0.4).tolist()), str(draws.choice(["square", "background", "ignore", "full"])))
    pictures = tuple(map(one, range(draws.integers(5, 9))))
    return f"drawn: {pictures}", pictures


# What is checked.

@dataclass(frozen=True)
class Outcome:
    """How a call ended: with a result (error ""), or with our own error."""

    folder: Path
    error: str


def run(words: Sequence[str], folder: Path, act: Callable[[Pipeline], object] = Pipeline.run) -> Outcome:
    """A call of the pipeline in `folder`; its files are checked. Raises whatever is not our own error, and each warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("default", category=DeprecationWarning)
        warnings.filterwarnings("default", category=ResourceWarning)
        try:
            act(Pipeline.compose(*words, f"outputs={folder}"))
            error = ""
        except WsssError as raised:
            error = str(raised)
    check_files(folder / "run")
    return Outcome(folder / "run", error)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in a JSON file")


def check_files(folder: Path) -> None:
    """Raise AssertionError for a number that is not finite in any file of a run, and for a report that shows one."""
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".manifest"):
            for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
                json.loads(line, parse_constant=_refuse)
        elif path.suffix == ".npy":
            assert np.isfinite(np.load(path)).all(), f"{path} is not finite"
        elif path.suffix == ".safetensors":
            wrong = [name for name, value in load_file(path).items() if not value.isfinite().all()]
            assert not wrong, f"{path}: {wrong} not finite"
        elif path.suffix == ".html":
            text = re.sub(r"data:[^\"')]*", "", path.read_text())
            found = re.search(r".{40}\b(nan|NaN|inf)\b.{40}", text)
            assert not found, f"{path}: {found.group()}"


def check_masks(folder: Path, pictures: Sequence[Picture]) -> None:
    """Raise AssertionError for a pseudo mask of another size than its image, or with classes that the image does not have."""
    for path in (folder / "make_sem_seg_labels").glob("i*.png"):
        mask, picture = read_mask(path), pictures[int(path.stem[1:])]
        assert mask.shape == (picture.height, picture.width), path
        assert set(np.unique(mask)) <= {0, *(1 + index for index in picture.classes)}, path


def require_named(outcome: Outcome, *parts: str) -> None:
    """Raise AssertionError unless a result was made, or the error has all `parts`."""
    assert all(re.search(part, outcome.error) for part in parts) or not outcome.error, f"{outcome.error!r} lacks one of {parts}"


# The rows.

def _number(trial: Trial) -> int:
    return int(trial.folder.name.rpartition("-")[2])


def odd_data(trial: Trial) -> int:
    """Odd images through the whole chain."""
    number, draws = _number(trial), trial.draws
    about, pictures = SETS[number] if number < len(SETS) else drawn_set(draws)
    steps = [step for step in ALL if step != "eval_faithfulness" or all(picture.classes for picture in pictures)]   # it needs classes
    words = (*write_folder(trial.folder / "data", pictures, draws, n_val=0 if draws.random() < 0.2 else 2), f"steps=[{','.join(steps)}]",
             f"refiner={REFINERS[number % len(REFINERS)]}", f"seed_maps={'make_amn_lpcam' if number % 2 else 'make_amn'}",
             f"precision={'bf16' if number % 3 == 2 else 'float32'}", f"artifacts.layout={'packed' if number % 5 == 1 else 'files'}")
    if about == "long images":
        words = (*words, "infer_seg.crf=false", "infer_seg.window=512", "infer_seg.overlap=32", "refiner=walk")
    if number % 7 == 0:
        words = (*words, "report.write=true")
    outcome = run(words, trial.folder / "out")
    check_masks(outcome.folder, pictures)
    require_named(outcome, "^(masks of|[a-z_]+[.:])")
    if not outcome.error and number % 3 == 0:
        predict(trial, words, f"{draws.integers(len(pictures)):02}")
    return len(pictures)


def predict(trial: Trial, words: Sequence[str], number: str) -> None:
    """The maps and the mask of one image of the data, and the masks of all by the trained network."""
    images, threshold = trial.folder / "data/images", trial.draws.choice([0.0, 0.5, 0.99])
    for more in ((f"image={images / f'i{number}.png'}", f"class_threshold={threshold}"), (f"images={images}", f"out={trial.folder / 'predicted'}")):
        predicted = run((*words, "action=predict", *more), trial.folder / "out", actions.load("predict").run)
        assert not predicted.error, predicted.error
    check_files(trial.folder / "predicted")


def finished(trial: Trial, precision: str = "float32") -> Path:
    """The folder with a finished run of every step on normal images, and its data."""
    def make(folder: Path) -> None:
        words = write_folder(folder / "data", NORMAL, np.random.default_rng(0))
        made = run((*words, f"steps=[{','.join(ALL)}]", "seed_maps=make_amn", "refiner=walk_crf", f"precision={precision}"), folder)
        assert not made.error, made.error
    return trial.made_once(f"numbers-{precision}", make)


# One number of a tensor, or all of them: what is written there
ODD_WEIGHTS: tuple[tuple[str, Callable[[torch.Tensor], torch.Tensor]], ...] = (
    ("one NaN", lambda x: _with(x, torch.nan)), ("one infinity", lambda x: _with(x, -torch.inf)), ("zeros", torch.zeros_like),
    ("times 1e30", lambda x: x * 1e30), ("one of 3e38", lambda x: _with(x, 3e38)), ("times 1e-42", lambda x: x * 1e-42),
    ("negative", lambda x: -x.abs()), ("float16", lambda x: x.half()), ("times 1e5", lambda x: x * 1e5), ("constant", torch.ones_like))


def _with(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x.view(-1)[x.numel() // 2] = value
    return x


def odd_weights(trial: Trial) -> int:
    """A trained network with an odd tensor, or odd everywhere, read by every step that uses it."""
    draws, number = trial.draws, _number(trial)
    precision = str(draws.choice(["float32", "float32", "bf16"])) if number >= 20 else "float32"
    base, trained = finished(trial, precision), ("train_cam", "train_amn", "train_irn", "train_seg", "train_recam")
    step = trained[number % len(trained)]
    about, change = ODD_WEIGHTS[number // len(trained) % len(ODD_WEIGHTS)]
    tensors = load_file(base / "run" / step / WEIGHTS)
    names = [name for name in tensors if tensors[name].is_floating_point() and "running_var" not in name]
    chosen = names if draws.random() < 0.3 else [str(draws.choice(names))]
    file = trial.folder / "odd.safetensors"
    save_file({name: change(value) if name in chosen else value for name, value in tensors.items()}, file)
    words = (f"data.root={base / 'data'}", *SMALL, f"steps=[{','.join(ALL)}]", "seed_maps=make_amn", "refiner=walk_crf",
             *([f"reuse_from=[{base / 'run'}]"] if step != "train_cam" else []), f"{step}.weights={file}", f"precision={precision}",
             f"make_cam.also_score=[{','.join(draws.choice(METHODS, 2, replace=False))}]")
    outcome = run(words, trial.folder / "out")
    check_masks(outcome.folder, NORMAL)
    require_named(outcome, "^[a-z_]+[.:]")
    assert outcome.error or about not in ("one NaN", "one infinity"), f"{step} with {about} in {chosen} is used"
    return 1


ODD_MAPS: tuple[tuple[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]], ...] = (
    ("zeros", lambda x, draws: x * 0), ("one NaN", lambda x, draws: np.where(x == x.max(), np.nan, x)),
    ("one infinity", lambda x, draws: np.where(x == x.max(), np.inf, x)), ("constant", lambda x, draws: x * 0 + 1),
    ("tiny", lambda x, draws: x * 1e-42), ("huge", lambda x, draws: x.astype(np.float64) * 10.0 ** draws.choice([30, 37, 300])), ("negative", lambda x, draws: x - 2),
    ("float16 at its end", lambda x, draws: (x * 65504).astype(np.float16)), ("whole numbers", lambda x, draws: (x * 255).astype(np.uint8)),
    ("one number", lambda x, draws: x[:, :1, :1]), ("one class all zero", lambda x, draws: np.concatenate([x[:1] * 0, x[1:]])),
    ("almost zeros", lambda x, draws: x * np.float32(1e-30)), ("false and true", lambda x, draws: x > 0.5))


def odd_maps(trial: Trial) -> int:
    """Maps of another project, of which those of one image or of all are odd, through every step that reads maps."""
    draws, base, number = trial.draws, finished(trial), _number(trial)
    about, change = ODD_MAPS[number % len(ODD_MAPS)]
    folder, all_odd = trial.folder / "maps", draws.random() < 0.5
    folder.mkdir()
    activation = str(draws.choice(["none", "none", "relu", "sigmoid", "softmax"]))
    for name, picture in enumerate(NORMAL):
        maps = draws.random((len(CLASSES) if activation == "softmax" else len(picture.classes), picture.height, picture.width)).astype(np.float32)
        np.save(folder / f"i{name:02}.npy", change(maps, draws) if all_odd or name == number % len(NORMAL) else maps)
    wide = "[0,9e37]" if about == "huge" else "[0,65504]" if "float16" in about else "[0,255]" if "whole" in about else "[-2,1]"
    words = (f"data.root={base / 'data'}", *SMALL, "experiment=imported_maps", f"imported.maps={folder}", f"imported.activation={activation}",
             *([f"imported.range={wide}"] if activation == "none" and draws.random() < 0.6 else []),
             f"train_irn.weights={base / 'run/train_irn' / WEIGHTS}", f"refiner={REFINERS[number % len(REFINERS)]}", "name=run")
    outcome = run(words, trial.folder / "out")
    check_masks(outcome.folder, NORMAL)
    require_named(outcome, "imported")
    assert outcome.error or about not in ("one NaN", "one infinity"), f"maps with {about} are used"
    return 1


def diverged(trial: Trial) -> int:
    """A training with a learning rate at which it diverges: at once, in the middle, or with its last step."""
    draws, base, number = trial.draws, finished(trial), _number(trial)
    trained = ("train_seg", "train_recam", "train_cam", "train_amn", "train_irn")
    step, optimizer = trained[number % len(trained)], str(draws.choice(["sgd", "adam", "adamw"]))
    lr = 10.0 ** (6 if number < len(trained) else draws.uniform(0, 6))
    factor = {"train_irn": "displacement_lr_mult=1e6"}.get(step, "head_lr_mult=1e6") if draws.random() < 0.7 else "power=1"
    words = (f"data.root={base / 'data'}", *SMALL, f"steps=[{','.join(ALL)}]", "seed_maps=make_amn", "refiner=walk_crf",
             *([f"reuse_from=[{base / 'run'}]"] if step != "train_cam" else []), f"to_step={step}", f"{step}.lr={lr}", f"{step}.{factor}", f"{step}.epochs={1 + number % 3}",
             f"{step}.optimizer={optimizer}", f"{step}.checkpoint_steps={1 + number % 2}", f"{step}.batch_size=6")
    outcome = run(words, trial.folder / "out")
    require_named(outcome, f"^{step}", rf"Lower {step}\.lr")
    return 1


@lru_cache
def chosen_method(name: str) -> CamMethod:
    """The method of a file of `conf/cam/`."""
    return typed(compose([f"cam={name}", "backbone=tiny"])).cam


def odd_methods(trial: Trial) -> int:
    """Every method that makes maps, on an odd image by a classifier with odd weights."""
    draws, number = trial.draws, _number(trial)
    classifier = backbone_method("tiny").new("group", seed=number)
    net = Plain(loss="soft_margin").new(classifier, len(CLASSES), seed=number).eval().requires_grad_(False)
    names = [name for name, _ in net.named_parameters()]
    if about := number % (len(ODD_WEIGHTS) + 1):
        for name in names if number % 2 else [str(draws.choice(names))]:
            parameter = net.get_parameter(name)
            parameter.data = ODD_WEIGHTS[about - 1][1](parameter.data).float()
    image = Picture(*map(int, draws.choice([1, 2, 5, 33, 48], 2)), str(draws.choice(["square", "constant", "black", "noise"]))).draw(draws)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in draws.choice(METHODS, 4, replace=False):
            method = chosen_method(str(name))
            try:
                packed, maxima = pack(multi_scale_maps(method, net, net.features, image, [0, 2], [1.0, 0.5]))
            except WsssError as error:
                assert "NaN or infinite" in str(error), error
                continue
            assert packed.isfinite().all() and maxima.isfinite().all() and packed.abs().max() <= 1, name
    return 4


ROWS = (
    Row("numbers-data", "odd images (1x1, constant, 4000x100), classes and masks through every step", odd_data, 100, 2, "images"),
    Row("numbers-weights", "a trained network with NaN, infinity, zeros or huge numbers, in every step that reads it", odd_weights, 200, 2,
        "networks"),
    Row("numbers-maps", "imported maps with NaN, infinity, zeros, huge and tiny numbers, through every refiner", odd_maps, 150, 3, "folders"),
    Row("numbers-diverged", "trainings with learning rates up to 1e12", diverged, 150, 2, "trainings"),
    Row("numbers-methods", "every method of maps on odd images by odd classifiers", odd_methods, 200, 2, "maps"),
)
