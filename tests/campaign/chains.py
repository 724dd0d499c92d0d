"""Chains of steps on the embedded data at its smallest, the run that nothing disturbs, and what another run must leave as it does."""

import json
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from steps.runtime.store import Store
from tests.campaign.processes import START, TICK, Running, cpu_seconds, plain
from tests.campaign.row import Trial

RUN = "run"
SMALL = ("experiment=smoke", f"name={RUN}", "backbone=tiny", "device=cpu", "threads=1", "report.write=false", "data.image_size=32",
         "data.n_train=8", "data.n_val=4", "make_cam.scales=[1.0,0.5]", "refiner=walk", "train_cam.epochs=4", "train_cam.batch_size=4",
         "train_cam.checkpoint_steps=3", "make_lpcam.n_clusters=2", "make_lpcam.min_prototypes=1", "train_irn.epochs=2",
         "train_irn.batch_size=4", "train_irn.checkpoint_steps=1", "train_seg.epochs=2", "train_seg.batch_size=4",
         "train_seg.absent_classes=true", "train_seg.checkpoint_steps=1", "train_amn.epochs=2", "train_amn.batch_size=4",
         "train_amn.checkpoint_steps=1", "make_amn.scales=[1.0]", "eval_faithfulness.images=2", "eval_faithfulness.steps=2", "eval_faithfulness.road=[0.5]",
         "eval_faithfulness.randomised=1", "eval_loc.interval=0.1", "distributed.start=120")
SHORT = "short"
# Together all steps
CHAINS = {
    "lpcam": ("train_cam make_cam make_lpcam eval_cam eval_faithfulness eval_loc cam_to_ir_label train_irn make_sem_seg_labels "
              "eval_sem_seg train_seg infer_seg eval_seg make_ins_seg_labels eval_ins_seg"),
    "amn": ("train_cam train_recam make_cam eval_cam cam_to_ir_label train_amn make_amn make_amn_lpcam eval_amn amn_ir_label train_irn "
            "make_sem_seg_labels eval_sem_seg"),
    "imported": ("train_cam imported eval_cam cam_to_ir_label train_irn make_sem_seg_labels eval_sem_seg train_seg_gt infer_seg_gt "
                 "eval_seg_gt"),
    SHORT: "train_cam make_cam eval_cam cam_to_ir_label",
}
SEEDS = {"lpcam": "make_lpcam", "amn": "make_amn", "imported": "imported", SHORT: "make_cam"}
# What two runs need not have alike: times and memory, how the work was divided among calls and processes, where it was stored
MANIFEST = ("started", "finished", "seconds", "peak_memory_mb", "disk_mb", "continued", "made", "processes", "checksum")
SUMMARY = ("seconds", "peak_memory_mb", "disk_mb")
CONFIG = ("artifacts", "workers")
LEFT_OUT = ("run.log", ".locks/planning")
OF_A_COPY = ("name", "reuse_from", "taken_from")   # of a run with another name, also this


def chosen(trial: Trial) -> str:
    """A chain: any in the long form."""
    return SHORT if trial.short else str(trial.draws.choice([chain for chain in CHAINS if chain != SHORT]))


def uninterrupted(trial: Trial, chain: str) -> tuple[tuple[str, ...], Path]:
    """The command line of a chain, and the folder of a run that nothing disturbs, which the first trial makes as a user does.

    `times.json`: how long each step computes.
    """
    command = (*SMALL, f"steps=[{','.join(CHAINS[chain].split())}]", f"seed_maps={SEEDS[chain]}")
    if chain == "imported":
        command += (f"imported.maps={trial.made_once('maps', _write_maps)}",)

    def make(folder: Path) -> None:
        running = plain(command, folder, RUN)
        (folder / "times.json").write_text(json.dumps(times(running)))
        if running.wait() != [0]:
            raise RuntimeError(running.said())
    return command, trial.made_once(f"run-{chain}", make)


def copied(expected: Path, folder: Path) -> None:
    """Copy the outputs of a finished run into another folder."""
    shutil.copytree(expected / "outputs", folder / "outputs")
    file = folder / "outputs" / RUN / "run.json"   # names the folder of the data set
    file.write_text(file.read_text().replace(str(expected.resolve()), str(folder.resolve())))


def _write_maps(folder: Path) -> None:
    """Maps of all images, as another project may have written them."""
    draws = np.random.default_rng(0)
    for name in [f"train_{i:04}" for i in range(8)] + [f"val_{i:04}" for i in range(4)]:
        np.save(folder / f"{name}.npy", draws.random((8, 8, 8), dtype=np.float32))


def times(running: Running) -> dict[str, float]:
    """The seconds that each step computes, of a run until it ends; of START the time before the first step."""
    found: dict[str, float] = {}
    begun, known = 0.0, START
    while running.alive():
        used = cpu_seconds(running.pids[0])
        if (now := running.now()) != known:
            found.setdefault(known, used - begun)
            begun, known = used, now
        time.sleep(TICK)
    return found


def contents(run: Path, leave: tuple[str, ...] = ()) -> dict[str, bytes]:
    """What a run has left, by file: whole files; of a manifest, index, summary or configuration what must be alike; the members of
    packs instead of the packs. `leave`: further keys that need not be alike."""
    found: dict[str, bytes] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or name in LEFT_OUT or path.parent.name == "packs":
            continue
        content = path.read_bytes()
        if path.name == "manifest.json":
            content = _without(json.loads(content), MANIFEST + leave)
        elif name == "summary.json":
            summary = json.loads(content)
            summary["steps"] = {step: _without(facts, SUMMARY).decode() for step, facts in summary["steps"].items()}
            content = _without(summary, leave)
        elif name == "run.json":   # the only path that is absolute
            content = _without(json.loads(content.replace(str(run.parent.resolve()).encode(), b"outputs")), ("checksum",))
        elif name == "config.yaml":
            content = _without(yaml.safe_load(content), CONFIG + leave)
        found[name] = content
        if path.name == "index.jsonl":
            found |= _of_index(path, name)
    return found


def _without(facts: dict[str, Any], keys: tuple[str, ...]) -> bytes:
    facts = {key: value for key, value in facts.items() if key not in keys}
    if "files" in facts:   # the index has the places in packs
        facts["files"] = {name: state for name, state in facts["files"].items() if name != "index.jsonl"}
    return json.dumps(facts).encode()


def _of_index(path: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """The index without the places in packs, and the members of the packs, which must be complete."""
    store, lines = Store(path.parent), []
    for pack in path.parent.glob("packs/*.tar"):
        with tarfile.open(pack) as opened:
            opened.getmembers()
    for image_id, line in store.index.items():
        line = {key: value for key, value in line.items() if key != "crc"}   # of the line itself, with the places
        lines.append(json.dumps({**line, "files": {file: place[:2] for file, place in line["files"].items()}, "pack": None}))
        if "pack" in line:
            yield from ((f"{Path(name).parent}/{file}", store.checked(image_id, file)) for file in line["files"])
    yield name, "\n".join(lines).encode()


def compare(run: Path, expected: Path, leave: tuple[str, ...] = ()) -> None:
    """Raise AssertionError if two runs differ in what must be alike."""
    one, two = contents(run, leave), contents(expected, leave)
    missing, more = sorted(two.keys() - one.keys()), sorted(one.keys() - two.keys())
    different = sorted(name for name in one.keys() & two.keys() if one[name] != two[name])
    assert not (missing or more or different), f"{run} against {expected}: missing {missing}, more {more}, different {different}"
