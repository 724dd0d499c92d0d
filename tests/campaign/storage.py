"""Disks that fail, with real errors: a full or read-only file system, a folder that vanishes, a limit on the size of files, a file
system without hard links, a loss of power.

A trial removes a step of a small finished run and makes it again on such a disk. The error must name the path and what is needed;
afterwards, with room, the same command ends with the same bytes.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

from pipeline.console import Console
from tests.campaign.damage import SMALL, STEPS, compare, finished, small, tree
from tests.campaign.row import Row, Trial, Unavailable
from tests.conftest import ROOT
from wsss.errors import StorageError

KIB, MIB = 2**10, 2**20


def command(*words: str | Path) -> None:
    """Run a command of the system. Raises Unavailable if it is missing or refused."""
    try:
        done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    except FileNotFoundError:
        raise Unavailable(f"there is no {words[0]} here") from None
    if done.returncode:
        raise Unavailable(f"{words[0]} is refused here: {done.stderr.strip() or done.stdout.strip()}")


@contextmanager
def mounted(folder: Path, *words: str | Path) -> Iterator[Path]:
    """A file system, mounted on `folder` by `mount WORDS`."""
    folder.mkdir()
    command("mount", *words, folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True)


def memory_disk(trial: Trial) -> Iterator[Path]:
    return mounted(trial.folder / "disk", "-t", "tmpfs", "-o", "size=200m", "tmpfs")


def resize(disk: Path, options: str) -> None:
    command("mount", "-o", f"remount,{options}", disk)


def on(trial: Trial, disk: Path) -> Path:
    """The finished run, copied to a disk; its data set stays where it is."""
    source = finished(trial)
    shutil.copytree(source / "smoke", disk / "outputs/smoke")
    (disk / "outputs/.data").symlink_to(source / ".data")
    return disk / "outputs"


def drawn_step(trial: Trial) -> str:
    """By the number of the trial each step in turn."""
    return STEPS[int(trial.folder.name.rpartition("-")[2]) * 5 % len(STEPS)]


def without(outputs: Path, step: str) -> tuple[dict[str, tuple[bytes, int]], int]:
    """Remove a step; what the run had, and the bytes of the step."""
    before, size = tree(outputs / "smoke"), sum(path.stat().st_size for path in (outputs / "smoke" / step).rglob("*"))
    shutil.rmtree(outputs / "smoke" / step)
    return before, size


def ends_the_same(outputs: Path, step: str, before: dict[str, tuple[bytes, int]]) -> None:
    """The same command, with room, ends as if nothing had happened."""
    small(outputs, f"to_step={step}").run()
    compare(before, outputs / "smoke", {f"{step}/"}, set())
    assert not [path for path in (outputs / "smoke").rglob("*") if path.name.endswith(".tmp") or ".partial-" in path.name]


@contextmanager
def says(outputs: Path, *wanted: str) -> Iterator[list[str]]:
    """The command may end well, or with an error that names a path of the run and has the `wanted` words."""
    said: list[str] = []
    try:
        yield said
    except StorageError as error:
        said.append(str(error))
        assert str(outputs) in str(error), f"no path in: {error}"
        for words in wanted:
            assert re.search(words, str(error)), f"no {words!r} in: {error}"


NEEDED = r"needs about [\d.]+ MiB|needs [\d.,]+ (bytes|MiB)"


def full_disk(trial: Trial) -> int:
    with memory_disk(trial) as disk:
        outputs, step = on(trial, disk), drawn_step(trial)
        before, size = without(outputs, step)
        used = shutil.disk_usage(disk).used
        room = int(trial.draws.integers(0, 4)) * 4 * KIB if trial.draws.integers(4) == 0 else int(trial.draws.integers(0, size + 32 * KIB))
        print(f"{step}: {room // KIB} KiB of {size // KIB}")
        resize(disk, f"size={-(-(used + room) // 4096) * 4}k")
        with says(outputs, "No space left on device", "MiB free", NEEDED, "the same command continues"):
            small(outputs, f"to_step={step}").run()
        resize(disk, "size=200m")
        ends_the_same(outputs, step, before)
    return 1


def limited_files(trial: Trial) -> int:
    """As a quota in the middle of a file: no file may grow beyond a limit."""
    outputs, step = on(trial, trial.folder), drawn_step(trial)
    largest = max(path.stat().st_size for path in (outputs / "smoke" / step).rglob("*"))
    before, _ = without(outputs, step)
    limit, hard = int(trial.draws.integers(1, largest + 2 * KIB)), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    print(f"{step}: no file above {limit} bytes of {largest}")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with says(outputs, "File too large", NEEDED, "the same command continues"):
            small(outputs, f"to_step={step}").run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    ends_the_same(outputs, step, before)
    return 1


@contextmanager
def at_a_moment(trial: Trial, most: int, act: Callable[[], object]) -> Iterator[None]:
    """`act` is called at a random report of progress of the run inside."""
    left = [int(trial.draws.integers(1, most))]

    def report(*_: object) -> None:
        left[0] -= 1
        if not left[0]:
            act()
    with patch.object(Console, "progress", side_effect=report):
        yield


def read_only(trial: Trial) -> int:
    """From the start, or a folder of the step that may not be written any more."""
    with memory_disk(trial) as disk:
        outputs, step = on(trial, disk), drawn_step(trial)
        before, _ = without(outputs, step)
        if trial.draws.integers(4) == 0:
            resize(disk, "ro")
            with says(outputs, "Read-only file system", "make it writable"):
                small(outputs, f"to_step={step}").run()
                raise AssertionError("it was written")
            small(outputs).plan(), small(outputs).status(), small(outputs, f"to_step={STEPS[0]}").verify()
            resize(disk, "rw")
        else:
            def freeze() -> None:
                for folder in (outputs / "smoke").glob(f"{step}.partial-*"):
                    command("chattr", "+i", folder)
            with at_a_moment(trial, 14, freeze), says(outputs, "Operation not permitted", "make it writable"):
                small(outputs, f"to_step={step}").run()
            for folder in (outputs / "smoke").glob(f"{step}*"):
                command("chattr", "-i", folder)
        ends_the_same(outputs, step, before)
    return 1


def vanishing(trial: Trial) -> int:
    """A folder that is gone in the middle, and comes back."""
    outputs, step = on(trial, trial.folder), drawn_step(trial)
    before, _ = without(outputs, step)
    what = outputs if trial.draws.integers(2) else outputs / "smoke"
    away = trial.folder / "away"
    with at_a_moment(trial, 14, lambda: what.rename(away)), says(outputs, "does not exist any more", "the same command continues"):
        small(outputs, f"to_step={step}").run()
    if away.exists():
        print(f"{what} vanished in {step}")
        assert not what.exists(), f"{what} was made again while it was away: {sorted(what.rglob('*'))[:5]}"
        away.rename(what)
    ends_the_same(outputs, step, before)
    return 1


NO_LINKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <unistd.h>
int link(const char *a, const char *b) { errno = EPERM; return -1; }
int linkat(int a, const char *b, int c, const char *d, int e) { errno = EPERM; return -1; }
int rename(const char *a, const char *b) {
    usleep(20000);
    return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(a, b);
}
"""


def no_hard_links(trial: Trial) -> int:
    """Reuse on another disk, or where `link` is refused and `rename` takes its time, as on some network disks."""
    with memory_disk(trial) as disk:
        source, outputs = finished(trial), disk / "outputs"
        outputs.mkdir()
        (outputs / ".data").symlink_to(source / ".data")
        words = ["name=other", f"reuse_from=[{source / 'smoke'}]"]
        before = {name: content for name, content in tree(source / "smoke").items() if not name.endswith("manifest.json")}
        if trial.draws.integers(3):
            small(outputs, *words).run()
        else:
            (trial.folder / "shim.c").write_text(NO_LINKS)
            command("cc", "-shared", "-fPIC", "-o", trial.folder / "shim.so", trial.folder / "shim.c", "-ldl")
            shutil.copytree(source / "smoke", outputs / "smoke")
            words[1] = "reuse_from=[smoke]"
            done = subprocess.run([sys.executable, "run_pipeline.py", *SMALL, f"outputs={outputs}", *words], cwd=ROOT, capture_output=True,
                                  text=True, env={**os.environ, "LD_PRELOAD": str(trial.folder / "shim.so")})
            assert not done.returncode, done.stderr
        after = tree(outputs / "other")
        assert {name: content for name, (content, _) in before.items() if name != "run.json"} == {
            name: content for name, (content, _) in after.items() if name != "run.json" and not name.endswith("manifest.json")}
        assert all((outputs / "other" / name).stat().st_nlink == 1 for name in after)
        assert all(step.ok for step in small(outputs, "name=other").verify())
    return 1


def same_twice(image: Path, target: Path) -> None:
    """A copy of the image of a disk as it was at one moment."""
    for _ in range(20):
        shutil.copyfile(image, target)
        if target.read_bytes() == image.read_bytes():
            return
    raise AssertionError(f"{image} never rests")


def power_cut(trial: Trial) -> int:
    """The disk is an image with an ext4 that writes only what it is told to; it is copied while a step is made."""
    image, steps = trial.folder / "image", STEPS[(first := STEPS.index(drawn_step(trial))):first + 2]
    with open(image, "wb") as file:
        file.truncate(48 * MIB)
    command("mkfs.ext4", "-q", image)
    options = "loop,commit=600,noauto_da_alloc" + ",data=writeback" * int(trial.draws.integers(2))
    with mounted(trial.folder / "disk", "-o", options, image) as disk:
        outputs = on(trial, disk)
        before = tree(outputs / "smoke")
        for step in steps:
            shutil.rmtree(outputs / "smoke" / step)
        os.sync()
        child = os.fork()
        if not child:   # without a new interpreter, which takes seconds
            with suppress(BaseException):
                small(outputs, f"to_step={steps[-1]}").run()
                os._exit(0)
            os._exit(1)
        cuts, ended = [], False
        try:
            while not ended and len(cuts) < 6:
                time.sleep(float(trial.draws.exponential(0.5)))
                ended = os.waitpid(child, os.WNOHANG)[0] == child
                if not ended:
                    os.kill(child, signal.SIGSTOP)
                cut = trial.folder / f"cut-{len(cuts)}"
                done = {step for step in steps if (outputs / "smoke" / step / "manifest.json").exists()}
                same_twice(image, cut)
                cuts.append((cut, done))
                if not ended:
                    os.kill(child, signal.SIGCONT)
        finally:
            if not ended:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    for number, (cut, done) in enumerate(cuts):
        with mounted(trial.folder / f"after-{number}", "-o", "loop", cut) as disk:
            after_a_cut(disk / "outputs", done, before, steps if number in (0, len(cuts) - 1) else ())
    return len(cuts)


def after_a_cut(outputs: Path, done: set[str], before: dict[str, tuple[bytes, int]], steps: tuple[str, ...]) -> None:
    """What was done is there; the journal lines that are there have their files; then the `steps` end as always."""
    now = tree(outputs / "smoke")
    for step in {name.split("/")[0] for name in before if "/" in name} - set(STEPS) | set(STEPS):
        if step in done or step not in steps and steps:
            for name in before:
                if name.startswith(f"{step}/") and not name.endswith("manifest.json"):
                    assert name in now and now[name][0] == before[name][0], f"{name} was done and is lost"
    for step in done:
        assert (outputs / "smoke" / step / "manifest.json").exists(), f"{step} was done and is lost"
    for journal in (outputs / "smoke").glob("*/journals/*.jsonl"):
        for text in journal.read_text(errors="replace").splitlines():
            with suppress(ValueError):   # the last line may be incomplete
                for name, (size, *_) in json.loads(text)["files"].items():
                    path = journal.parents[1] / name
                    assert not path.exists() or path.stat().st_size == size, f"{path} is not whole"
    if steps:
        small(outputs, f"to_step={steps[-1]}").run()
        compare(before, outputs / "smoke", {f"{step}/" for step in steps}, set())


ROWS = (
    Row("full-disk", "a disk that is full at a random write of each step", full_disk, wanted=100, short=3, inputs="disks"),
    Row("limited-files", "a limit (quota) in the middle of a file", limited_files, wanted=60, short=2, inputs="limits"),
    Row("read-only", "a folder that cannot be written, from the start or from the middle", read_only, wanted=40, short=2, inputs="folders"),
    Row("vanishing", "a run folder that is gone in the middle", vanishing, wanted=60, short=3, inputs="folders"),
    Row("no-hard-links", "a disk without hard links, with a slow rename", no_hard_links, wanted=12, inputs="runs"),
    Row("power-cut", "a copy of the disk (ext4) at a random moment", power_cut, wanted=60, short=1, inputs="copies"),
)
