"""Kills: a run is killed at random moments and continued until it is finished. All that it leaves is compared with a run that
nothing has interrupted, byte by byte.

The moments are drawn over the steps, so that short ones are hit as often as long ones: the next kill comes in one of the AHEAD
steps that follow, after a random share of the time that this step computes.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from steps.runtime.store import Store
from tests.campaign.processes import START, TICK, Running, cpu_seconds, start
from tests.campaign.row import Row, Trial
from tests.conftest import ROOT

RUN = "run"
AHEAD = 3                # steps
KILLS = 12               # wanted in a trial
SMALL = ("experiment=smoke", f"name={RUN}", "backbone=tiny", "device=cpu", "threads=1", "report.write=false", "data.image_size=32",
         "data.n_train=8", "data.n_val=4", "make_cam.scales=[1.0,0.5]", "refiner=walk", "train_cam.epochs=4", "train_cam.batch_size=4",
         "train_cam.checkpoint_steps=3", "make_lpcam.n_clusters=2", "make_lpcam.min_prototypes=1", "train_irn.epochs=2",
         "train_irn.batch_size=4", "train_irn.checkpoint_steps=1", "train_seg.epochs=2", "train_seg.batch_size=4", "train_seg.absent_classes=true",
         "train_seg.checkpoint_steps=1", "train_amn.epochs=2", "train_amn.batch_size=4", "train_amn.checkpoint_steps=1",
         "eval_faithfulness.images=2", "eval_faithfulness.steps=2", "eval_faithfulness.road=[0.5]", "eval_faithfulness.randomised=1",
         "eval_loc.interval=0.1", "distributed.start=120")
# A chain of steps each; together all steps
CHAINS = {
    "lpcam": ("train_cam make_cam make_lpcam eval_cam eval_faithfulness eval_loc cam_to_ir_label train_irn make_sem_seg_labels eval_sem_seg "
              "train_seg infer_seg eval_seg make_ins_seg_labels eval_ins_seg"),
    "amn": ("train_cam train_recam make_cam eval_cam cam_to_ir_label train_amn make_amn make_amn_lpcam eval_amn amn_ir_label train_irn "
            "make_sem_seg_labels eval_sem_seg"),
    "imported": "train_cam imported eval_cam cam_to_ir_label train_irn make_sem_seg_labels eval_sem_seg train_seg_gt infer_seg_gt eval_seg_gt",
}
SEEDS = {"lpcam": "make_lpcam", "amn": "make_amn", "imported": "imported"}
# What an interrupted run may leave otherwise than another one: times, memory, how the work was divided, and where it was stored
MANIFEST = ("started", "finished", "seconds", "continued", "peak_memory_mb", "disk_mb", "processes", "made")
SUMMARY = ("seconds", "peak_memory_mb", "disk_mb")
LEFT_OUT = ("run.log", ".locks/planning")


def words(chain: str, maps: Path) -> tuple[str, ...]:
    """The command line of a chain; `maps`: the folder of the maps that are imported."""
    return (*SMALL, f"steps=[{','.join(CHAINS[chain].split())}]", f"seed_maps={SEEDS[chain]}",
            *((f"imported.maps={maps}",) if chain == "imported" else ()))


def write_maps(folder: Path) -> None:
    """Maps of all images, as another project may have written them."""
    draws = np.random.default_rng(0)
    for name in [f"train_{i:04}" for i in range(8)] + [f"val_{i:04}" for i in range(4)]:
        np.save(folder / f"{name}.npy", draws.random((8, 8, 8), dtype=np.float32))


def uninterrupted(trial: Trial, chain: str) -> tuple[tuple[str, ...], Path]:
    """The command line of a chain, and the folder of a run that nothing interrupts, which the first trial makes by the interpreter's
    own start. `times.json`: how long each step computes."""
    command = words(chain, trial.made_once("kill-maps", write_maps))

    def make(folder: Path) -> None:
        environment = {**os.environ, "WSSS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        with open(folder / "output", "w") as output:
            process = subprocess.Popen([sys.executable, ROOT / "run_pipeline.py", *command], cwd=folder, env=environment, stdout=output, stderr=output)
            (folder / "times.json").write_text(json.dumps(times(Running(folder, RUN, [_Started(process)]))))
        if process.returncode:
            raise RuntimeError((folder / "output").read_text())
    return command, trial.made_once(f"kill-{chain}", make)


class _Started:
    """A subprocess with the methods of one of multiprocessing."""

    def __init__(self, process: subprocess.Popen):
        self.process, self.pid = process, process.pid

    def is_alive(self) -> bool:
        return self.process.poll() is None


def times(running: Running) -> dict[str, float]:
    """The seconds that each step computes, of a run until it ends."""
    found: dict[str, float] = {}
    begun, known = 0.0, START
    while running.alive():
        used = cpu_seconds(running.pids[0])
        if (now := running.now()) != known:
            found.setdefault(str(known), used - begun)   # of START the time before the first step
            begun, known = used, now
        time.sleep(TICK)
    return found


def moment(running: Running, draws: np.random.Generator, steps: list[str], lasts: dict[str, float]) -> str | None:
    """Wait until a drawn moment; returns the step that the run is in then. None if it ended before."""
    aim, share, begun, known = None, draws.random(), 0.0, START
    if draws.random() < 1 / len(steps):
        aim = str(START)
    while running.alive():
        used, now = cpu_seconds(running.pids[0]), running.now()
        if now != known:
            begun, known = used, now
            if aim is None:   # the first step of this call
                aim = steps[min(len(steps) - 1, steps.index(now) + int(draws.integers(AHEAD)))]
        if aim is not None and _reached(str(now), aim, steps) and (str(now) != aim or used - begun >= share * lasts[aim]):
            time.sleep(draws.uniform(0, TICK))   # also while it waits for the disk
            return str(running.now())
        time.sleep(TICK)
    return None


def _reached(now: str, aim: str, steps: list[str]) -> bool:
    order = [str(START), *steps]
    return order.index(now) >= order.index(aim)


def contents(folder: Path) -> dict[str, bytes]:
    """What a run has left, by file: whole files; of a manifest, index, summary or configuration what may not differ; the members of
    packs instead of the packs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name in LEFT_OUT or path.parent.name == "packs":
            continue
        found[name] = path.read_bytes()
        if path.name == "manifest.json":
            found[name] = _without(json.loads(found[name]), MANIFEST)
        elif name == "summary.json":
            summary = json.loads(found[name])
            summary["steps"] = {step: json.loads(_without(facts, SUMMARY)) for step, facts in summary["steps"].items()}
            found[name] = json.dumps(summary).encode()
        elif name == "run.json":
            found[name] = found[name].replace(str(folder.parent.resolve()).encode(), b"outputs")
        elif name == "config.yaml":
            found[name] = _without(yaml.safe_load(found[name]), ("artifacts",))
        elif path.name == "index.jsonl":
            found |= _of_index(path, name)
    return found


def _without(facts: dict, keys: tuple[str, ...]) -> bytes:
    files = {"files": {name: state for name, state in facts["files"].items() if name != "index.jsonl"}} if "files" in facts else {}
    return json.dumps({key: value for key, value in (facts | files).items() if key not in keys}).encode()


def _of_index(path: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """The index without the places in packs, and the members of the packs."""
    store, lines = Store(path.parent), []
    for pack in path.parent.glob("packs/*.tar"):
        with tarfile.open(pack) as opened:   # complete
            opened.getmembers()
    for image_id, line in store.index.items():
        lines.append(json.dumps({**line, "files": {file: place[:2] for file, place in line["files"].items()}, "pack": None}))
        if "pack" in line:
            yield from ((f"{Path(name).parent}/{file}", store.checked(image_id, file)) for file in line["files"])
    yield name, "\n".join(lines).encode()


def compare(found: Path, expected: Path) -> None:
    """Raise AssertionError if two runs differ in what may not differ."""
    one, two = contents(found), contents(expected)
    missing, more = sorted(two.keys() - one.keys()), sorted(one.keys() - two.keys())
    different = sorted(name for name in one.keys() & two.keys() if one[name] != two[name])
    assert not (missing or more or different), f"{found} against {expected}: missing {missing}, more {more}, different {different}"


def interrupted(trial: Trial, numbers: tuple[int, ...], most: int) -> Counter:
    """Interrupt a run by signals, at `most` moments, and continue it each time; compare it. Returns the signals by step."""
    draws = trial.draws
    chain, ranks, layout = draws.choice(list(CHAINS)), int(draws.choice([1, 1, 2])), draws.choice(["files", "packed"])
    command, expected = uninterrupted(trial, chain)
    command, steps = (*command, f"artifacts.layout={layout}"), CHAINS[chain].split()
    lasts, sent, running = json.loads((expected / "times.json").read_text()), Counter(), None
    try:
        while True:
            running = start(command, trial.folder, RUN, ranks)
            number = int(draws.choice(numbers))
            step = moment(running, draws, steps, lasts) if sum(sent.values()) < most else None
            if step is not None:
                alone = ranks > 1 and step != str(START) and draws.random() < 0.5
                running.send(number, [int(draws.integers(ranks))] if alone else None)
                sent[_label(step)] += 1
            codes = running.wait()
            if codes == [0] * ranks:
                break
            _check_codes(codes, number, step, trial.folder)
    finally:
        if running is not None:
            running.send(signal.SIGKILL)
    compare(trial.folder / "outputs" / RUN, expected / "outputs" / RUN)
    return sent


def _label(step: str) -> str:
    return "start and plan" if step == str(START) else step


def _check_codes(codes: list[int], number: int, step: str | None, folder: Path) -> None:
    """A process that was killed ends by that; a signal that it handles gives the documented code; the others of its group end with 1."""
    said = (folder / "output").read_text()
    assert step is not None, f"exit codes {codes} without a signal: {said[-3000:]}"
    expected = {-number, 128 + number, 1, 0} if len(codes) > 1 else {-number, 128 + number, 0}
    assert set(codes) <= expected, f"exit codes {codes} after {signal.Signals(number).name} in {step}: {said[-3000:]}"


def kills(trial: Trial) -> Counter:
    return interrupted(trial, (signal.SIGKILL,), KILLS)


def stops(trial: Trial) -> Counter:
    return interrupted(trial, (signal.SIGTERM, signal.SIGINT), KILLS)


ROWS = [
    Row("kill", "SIGKILL at random moments of all steps, continued each time; files and packs, one and two ranks: the bytes of an "
        "uninterrupted run", kills, wanted=30, inputs="kills"),
    Row("stop", "the same with SIGTERM and SIGINT", stops, wanted=10, inputs="signals"),
]
