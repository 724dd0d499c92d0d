"""Disks that fail, with real errors: a full or read-only file system, a folder that vanishes, a limit on the size of files, a file
system without hard links, a loss of power.

A trial removes a step of a small finished run and makes it again on such a disk. The error must name the path and what is needed;
afterwards, with room, the same command ends with the same bytes.
"""

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
from steps.runtime.journal import complete_lines, file_sum
from tests.campaign.damage import SMALL, STEPS, compare, finished, lasting, small, tree
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
    if folder.is_mount():   # of a trial that was killed
        subprocess.run(["umount", "-l", folder], capture_output=True)
    folder.mkdir(parents=True, exist_ok=True)
    command("mount", *words, folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True)
        folder.rmdir()


def place(trial: Trial, name: str) -> Path:
    """Where to mount: outside the folder of the trial, which must be removable after a kill."""
    return trial.shared / "mounts" / f"{trial.folder.name}-{name}"


def memory_disk(trial: Trial) -> Iterator[Path]:
    return mounted(place(trial, "disk"), "-t", "tmpfs", "-o", "size=200m", "tmpfs")


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
    """The disk is an image with an ext4 that writes only what it is told to; it is copied while two steps are made."""
    image, said = trial.folder / "image", trial.folder / "said"
    steps = STEPS[(first := STEPS.index(drawn_step(trial))):first + 2]
    with open(image, "wb") as file:
        file.truncate(48 * MIB)
    command("mkfs.ext4", "-q", image)
    with mounted(place(trial, "disk"), "-o", "loop,commit=600,noauto_da_alloc" + ",data=writeback" * int(trial.draws.integers(2)), image) as disk:
        outputs = on(trial, disk)
        before = tree(outputs / "smoke")
        for step in steps:
            shutil.rmtree(outputs / "smoke" / step)
        os.sync()
        child, cuts = working(outputs, steps[-1], said), 0
        for cut, done in copies(trial, child, image, said):
            cuts += 1
            with mounted(place(trial, f"after-{cuts}"), "-o", "loop", cut) as after:
                nothing_lost(after / "outputs/smoke", before, [step for step in STEPS if step not in steps or step in done])
                if trial.draws.integers(4) == 0:
                    for claim in (after / "outputs/smoke/.locks").glob("*.json"):
                        claim.unlink()   # of the process that waits; after a loss of power the boot id would be another
                    small(after / "outputs", f"to_step={steps[-1]}").run()
                    compare(before, after / "outputs/smoke", {f"{step}/" for step in steps}, set())
            cut.unlink()
    assert steps[-1] in done, "the run in the child failed"
    return cuts


def working(outputs: Path, to_step: str, said: Path) -> int:
    """A process that runs the steps; it writes what it calls done into `said` and waits there. Returns its number. It is a fork,
    because a new interpreter takes seconds."""
    if child := os.fork():
        return child

    def finish(console: Console, step: str, seconds: float) -> None:
        with open(said, "a") as file:
            file.write(f"{step}\n")
        os.kill(os.getpid(), signal.SIGSTOP)
    with suppress(BaseException), patch.object(Console, "finish", finish):
        small(outputs, f"to_step={to_step}").run()
    os._exit(0)


def copies(trial: Trial, child: int, image: Path, said: Path) -> Iterator[tuple[Path, set[str]]]:
    """Copies of the disk when a step was called done, at random moments and at the end, each with the steps that were done. The
    process waits meanwhile."""
    ended, number = False, 0
    try:
        while not ended:
            end, stopped = time.monotonic() + float(trial.draws.exponential(2)), 0
            while not stopped and time.monotonic() < end:
                time.sleep(0.005)
                stopped, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if not stopped:
                os.kill(child, signal.SIGSTOP)
                _, status = os.waitpid(child, os.WUNTRACED)
            ended = not os.WIFSTOPPED(status)
            number += 1
            same_twice(image, trial.folder / f"cut-{number}")
            yield trial.folder / f"cut-{number}", set(said.read_text().split()) if said.exists() else set()
            if not ended:
                os.kill(child, signal.SIGCONT)
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def nothing_lost(run: Path, before: dict[str, tuple[bytes, int]], done: list[str]) -> None:
    """What was called done is whole; what a journal names is there as a whole or counts as broken."""
    now = tree(run)
    for name, (content, _) in before.items():
        if name.split("/")[0] in done:
            assert name in now and lasting(name, now[name][0]) == lasting(name, content), f"{name} was done and is lost"
    for journal in run.glob("*/journals/*.jsonl"):
        for line in complete_lines(journal):
            for name, (size, crc, *_) in line["files"].items():
                path = journal.parents[1] / name
                assert not path.exists() or path.stat().st_size != size or file_sum(path) == [size, crc], f"{path} is not what was written"


ROWS = (
    Row("full-disk", "a disk that is full at a random write of each step", full_disk, wanted=100, short=2, inputs="disks"),
    Row("limited-files", "a limit (quota) in the middle of a file", limited_files, wanted=60, inputs="limits"),
    Row("read-only", "a folder that cannot be written, from the start or from the middle", read_only, wanted=40, inputs="folders"),
    Row("vanishing", "a run folder that is gone in the middle", vanishing, wanted=60, inputs="folders"),
    Row("no-hard-links", "a disk without hard links, with a slow rename", no_hard_links, wanted=12, inputs="runs"),
    Row("power-cut", "a copy of the disk (ext4) at a random moment", power_cut, wanted=60, inputs="copies"),
)
