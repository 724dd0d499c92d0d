"""The table of what changes no byte, and by how much the rest changes: `python -m tests.campaign.determinism [--folder DIR]`.

Each row is a run of the embedded data set with one thing otherwise than in the first run: float32 on the CPU, one thread, one
process, which loads its images itself. A run that is finished in the folder is not made again.
"""

import argparse
import json
import platform
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load

from steps.runtime.store import Store
from tests.campaign.chains import RUN, SMALL, times
from tests.campaign.kill import Disturbed
from tests.campaign.processes import start

FIRST = "first"
STEPS = ("train_cam make_cam make_lpcam eval_cam cam_to_ir_label train_irn make_sem_seg_labels eval_sem_seg train_seg infer_seg "
         "eval_seg").split()
BASE = (*SMALL, f"steps=[{','.join(STEPS)}]", "data.image_size=64", "data.n_train=16", "data.n_val=8", "train_cam.epochs=10",
        "train_cam.lr=4e-4", "train_cam.head_lr_mult=1.0", "train_cam.freeze_early=false", "workers=0")
WEIGHTS, MAPS, MASKS = ("train_cam", "train_irn", "train_seg"), ("make_cam", "make_lpcam"), ("make_sem_seg_labels", "infer_seg")
SAME = "identical"


@dataclass(frozen=True)
class Case:
    """A run with one thing otherwise."""

    title: str
    name: str                    # of its folder
    words: tuple[str, ...] = ()
    ranks: int = 1
    kills: int = 0
    gpu: bool = False


CASES = (
    Case("the same seed again", "again"),
    Case("1 loader worker", "workers1", ("workers=1",)), Case("2 loader workers", "workers2", ("workers=2",)),
    Case("4 loader workers", "workers4", ("workers=4",)),
    Case("2 processes", "ranks2", ranks=2),
    Case("2 processes, trainings with `parts=null`", "parts", tuple(f"{step}.parts=null" for step in WEIGHTS), ranks=2),
    Case("killed 8 times and continued", "killed", kills=8),
    Case("2 threads", "threads2", ("threads=2",)),
    Case("bf16", "bf16", ("precision=bf16",)),
    Case("another seed of the trainings, to compare with", "seed", ("seed=1", "data.seed=0")),
    Case("a GPU", "gpu", ("device=cuda",), gpu=True),
    Case("a GPU, bf16", "gpu-bf16", ("device=cuda", "precision=bf16"), gpu=True),
)


def make(case: Case, folder: Path) -> Path:
    """The finished run of a case, below `folder`."""
    own = folder / case.name
    if not (done := own / "done").exists():
        own.mkdir(parents=True, exist_ok=True)
        command = (*BASE, *case.words)
        if case.kills:
            lasts = json.loads((folder / FIRST / "times.json").read_text())
            Disturbed(command, own, STEPS, lasts, (signal.SIGKILL,)).finish(np.random.default_rng(0), case.kills)
        else:
            running = start(command, own, RUN, case.ranks)
            (own / "times.json").write_text(json.dumps(times(running)))
            if set(running.wait()) != {0}:
                raise SystemExit(f"{case.title}: {running.said()}")
        done.touch()
    return own / "outputs" / RUN


def _differences(run: Path, first: Path, steps: Sequence[str], suffix: str, differ: Callable[[bytes, bytes], float]) -> float | None:
    """The largest difference of the files of some steps; None if all have the same bytes."""
    found = []
    for step in steps:
        for path in sorted((first / step).rglob(f"*{suffix}")):
            one, two = path.read_bytes(), (run / path.relative_to(first)).read_bytes()
            if one != two:
                found.append(differ(one, two))
    return max(found, default=None)


def of_weights(run: Path, first: Path) -> str:
    """How far a weight is off, in parts of the largest one of its tensor."""
    def differ(one: bytes, two: bytes) -> float:
        pairs = [(tensor.astype(np.float64), load(two)[name].astype(np.float64)) for name, tensor in load(one).items()]
        return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)) for a, b in pairs if a.size)
    found = {step: _differences(run, first, (step,), "weights.safetensors", differ) for step in WEIGHTS}
    return SAME if set(found.values()) == {None} else ", ".join(f"{step} {value or 0:.0e}" for step, value in found.items())


def of_maps(run: Path, first: Path) -> str:
    """How far a value of a map is off; maps are in [0, 1]."""
    def differ(one: bytes, two: bytes) -> float:
        a, b = (np.load(BytesIO(content)).astype(np.float32) for content in (one, two))
        return float(np.abs(a - b).max())
    found = _differences(run, first, MAPS, ".npy", differ)
    return SAME if found is None else f"{found:.2g}"


def of_masks(run: Path, first: Path) -> str:
    """The share of the pixels of all masks of a step whose label differs, in percent."""
    def share(step: str) -> float:
        pairs = [tuple(np.array(Image.open(BytesIO(Store(place / step).checked(path.stem, path.name)))) for place in (first, run))
                 for path in sorted((first / step).glob("*.png"))]
        return 100 * sum(int((a != b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs)
    if _differences(run, first, MASKS, ".png", lambda one, two: 1.0) is None:
        return SAME
    return ", ".join(f"{step} {share(step):.3g} %" for step in MASKS)


def of_scores(run: Path, first: Path) -> str:
    """The largest difference of an mIoU, in points."""
    if _differences(run, first, [step for step in STEPS if step.startswith("eval_")], "scores.json", lambda one, two: 1.0) is None:
        return SAME
    scores = [json.loads((place / "summary.json").read_text())["scores"] for place in (first, run)]
    found = [abs(of["miou"] - scores[1][kind]["miou"]) for kind, of in scores[0].items() if of.get("miou") is not None]
    return f"{100 * max(found):.2g} points"


COLUMNS = {"weights": of_weights, "maps": of_maps, "masks": of_masks, "mIoU": of_scores}


def table(folder: Path, cases: Sequence[Case] = CASES) -> str:
    """The table in Markdown; runs that are missing are made."""
    import torch

    lines = [f"| otherwise | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    first = make(Case("", FIRST), folder)
    for case in cases:
        if case.gpu and not torch.cuda.is_available():
            lines.append(f"| {case.title} | needs a GPU |" + " |" * (len(COLUMNS) - 1))
            continue
        run = make(case, folder)
        lines.append(f"| {case.title} | {' | '.join(of(run, first) for of in COLUMNS.values())} |")
    return "\n".join([*lines, "", f"{date.today()}, {platform.machine()}, {platform.system()}, torch {torch.__version__}"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.determinism", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/determinism"))
    print(table(parser.parse_args().folder.resolve()))
