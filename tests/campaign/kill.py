"""Kills: a run is killed at random moments and continued until it is finished. All that it leaves is compared with a run that
nothing has interrupted, byte by byte.

The moments are drawn over the steps, so that short ones are hit as often as long ones: the next signal comes in one of the AHEAD
steps that follow, after a random share of the time that this step computes.
"""

import json
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.campaign.chains import CHAINS, RUN, SHORT, chosen, compare, copied, uninterrupted
from tests.campaign.processes import START, TICK, Running, cpu_seconds, start
from tests.campaign.row import Row, Trial

AHEAD = 3     # steps
MOST = 12     # signals in a trial
CHANGES = 100   # to files and folders, within which a process is killed


def moment(running: Running, draws: np.random.Generator, steps: list[str], lasts: dict[str, float]) -> str | None:
    """Wait for a drawn moment; returns the step that the run works on then, None if it ended before."""
    order, share, begun, known = [START, *steps], draws.random(), 0.0, START
    aim = START if draws.random() < 1 / len(order) else None
    ahead, delay = int(draws.integers(AHEAD)), draws.uniform(0, TICK)   # the delay: also while it waits for the disk
    while running.alive():
        used, now = cpu_seconds(running.pids[0]), running.now()
        if now != known:
            begun, known = used, now
        if aim is None and now != START:   # the first step of this call
            aim = order[min(len(steps), order.index(now) + ahead)]
        if aim is not None and (order.index(now) > order.index(aim) or now == aim and used - begun >= share * lasts[aim]):
            time.sleep(delay)
            return now if running.alive() else None
        time.sleep(TICK)
    return None


@dataclass(frozen=True)
class Disturbed:
    """A run that is interrupted. steps: of its chain; lasts: the seconds that each computes; numbers: of the signals."""

    command: tuple[str, ...]
    folder: Path
    steps: list[str]
    lasts: dict[str, float]
    numbers: tuple[int, ...]
    ranks: int = 1

    def finish(self, draws: np.random.Generator, most: int) -> Counter[str]:
        """Interrupt it up to `most` times and continue it each time, until it is finished. Returns the signals by step."""
        sent, ended = Counter[str](), False
        while not ended:
            running, number, step = start(self.command, self.folder, RUN, self.ranks), int(draws.choice(self.numbers)), None
            try:
                if sent.total() < most:
                    step = moment(running, draws, self.steps, self.lasts)
                if step is not None:
                    alone = [int(draws.integers(self.ranks))] if step != START and draws.random() < 0.5 else None
                    running.send(number, alone)
                    sent[step] += 1
                codes = running.wait()
            finally:
                running.send(signal.SIGKILL)
            ended = codes == [0] * self.ranks
            others = [1, 128 + signal.SIGTERM] * (self.ranks > 1)   # another process has ended, or was told to
            allowed = {0} if step is None else {0, -number, 128 + number, *others}
            assert set(codes) <= allowed, f"exit codes {codes} after signal {number} in {step}: {running.said()[-3000:]}"
        return sent


def interrupted(trial: Trial, numbers: tuple[int, ...]) -> Counter[str]:
    """Interrupt a run by signals, and compare what it leaves in the end."""
    draws, chain = trial.draws, chosen(trial)
    ranks, layout, workers = int(draws.choice([1, 1, 2])), draws.choice(["files", "packed"]), draws.choice([0, 0, 1])
    command, expected = uninterrupted(trial, chain)
    command, lasts = (*command, f"artifacts.layout={layout}", f"workers={workers}"), json.loads((expected / "times.json").read_text())
    run = Disturbed(command, trial.folder, CHAINS[chain].split(), lasts, numbers, ranks)
    sent = run.finish(draws, 1 if trial.short else MOST)
    compare(trial.folder / "outputs" / RUN, expected / "outputs" / RUN)
    return sent


def killed_at_changes(trial: Trial, command: tuple[str, ...], ranks: int) -> Counter[str]:
    """Finish a run of which a process is killed again and again, just before it changes a file or folder: opens it for writing,
    renames or removes it."""
    draws, sent = trial.draws, Counter[str]()
    while True:
        number = int(np.exp(draws.uniform(0, np.log(CHANGES)))) if sent.total() < (1 if trial.short else MOST) else 0
        running = start(command, trial.folder, RUN, ranks, victim=int(draws.integers(ranks)), kill_at=number)
        try:
            codes = running.wait()
        finally:
            running.send(signal.SIGKILL)
        if codes == [0] * ranks:
            return sent
        assert number and -signal.SIGKILL in codes and set(codes) <= {-signal.SIGKILL, 0, 1}, f"exit codes {codes}: {running.said()[-3000:]}"
        sent[running.now() if codes[0] == -signal.SIGKILL else "the second process"] += 1   # the claim says the step of the first


def at_changes(trial: Trial) -> Counter[str]:
    draws, chain = trial.draws, chosen(trial)
    ranks, layout = int(draws.choice([1, 1, 2])), draws.choice(["files", "packed"])
    command, expected = uninterrupted(trial, chain)
    sent = killed_at_changes(trial, (*command, f"artifacts.layout={layout}"), ranks)
    compare(trial.folder / "outputs" / RUN, expected / "outputs" / RUN)
    return sent


def replacing(trial: Trial) -> Counter[str]:
    """A finished run gets another setting, by which most of its steps are made again and replaced, and then its own one again."""
    chain = SHORT if trial.short else str(trial.draws.choice(["lpcam", "amn"]))
    command, expected = uninterrupted(trial, chain)
    copied(expected, trial.folder)
    ranks = int(trial.draws.choice([1, 1, 2]))
    sent = killed_at_changes(trial, (*command, "replace=true", "make_cam.scales=[1.0]"), ranks)
    sent += killed_at_changes(trial, (*command, "replace=true"), ranks)
    compare(trial.folder / "outputs" / RUN, expected / "outputs" / RUN, leave=("replace",))
    return sent


def kills(trial: Trial) -> Counter[str]:
    return interrupted(trial, (signal.SIGKILL,))


def stops(trial: Trial) -> Counter[str]:
    return interrupted(trial, (signal.SIGTERM, signal.SIGINT))


ROWS = [
    Row("kill", "SIGKILL at random moments of all steps, then the same command; one and two processes, files and packs", kills,
        wanted=30, inputs="kills"),
    Row("kill-at-change", "SIGKILL just before a file or folder is opened for writing, renamed or removed, then the same command",
        at_changes, wanted=20, inputs="kills"),
    Row("kill-replacing", "the same in a finished run whose steps are made again with another setting, and again with the first one",
        replacing, wanted=8, inputs="kills"),
    Row("stop", "the same with SIGTERM and SIGINT", stops, wanted=10, inputs="signals"),
]
