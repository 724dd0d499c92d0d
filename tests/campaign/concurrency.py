"""Several runs at once: in one folder, with one cache or donor, with readers, in containers, with clocks that disagree.

Nothing is lost, no one waits for ever, and who is refused is told which process on which host works since when.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from tests.campaign.chains import CHAINS, OF_A_COPY, RUN, chosen, compare, copied, uninterrupted
from tests.campaign.processes import START, TICK, Running, plain, start
from tests.campaign.row import Row, Trial, Unavailable

BUSY = r"error: .* is in use by process (\d+) on (\S+) since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\. Wait for it, stop it, or .*delete (\S+)\)"
CONTAINER = ["unshare", "--user", "--map-root-user", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
HOUR = 3600


def refused(running: Running) -> tuple[int, str, Path]:
    """Wait for a run that must be refused; returns the number, the host and the claim of the process that its message names."""
    codes = running.wait()
    found = re.search(BUSY, running.said())
    assert codes == [1] and found and "Traceback" not in running.said(), f"exit codes {codes}: {running.said()}"
    return int(found[1]), found[2], running.folder / found[3]


def until_it_works(running: Running, step: str | None = None) -> None:
    """Wait until a run works on a step, by default on any."""
    while running.alive() and (running.now() == START or step not in (None, running.now())):
        time.sleep(TICK)
    assert running.alive(), f"it ended before it worked on {step or 'a step'}: {running.said()}"


def in_one_folder(trial: Trial) -> int:
    """The same command twice, the second after a random time."""
    chain = chosen(trial)
    command, expected = uninterrupted(trial, chain)
    first = start(command, trial.folder, RUN, output="first")
    time.sleep(trial.draws.choice([0.0, 0.2, 1.0, 3.0]))
    second = start(command, trial.folder, RUN, output="second")
    try:
        codes = first.wait() + second.wait()
        for running, code in zip((first, second), codes):
            if code:
                number, host, _ = refused(running)
                assert (number, host) == ((second if running is first else first).pids[0], os.uname().nodename)
        assert 0 in codes
    finally:
        _end(first, second)
    compare(trial.folder / "outputs" / RUN, expected / "outputs" / RUN)
    return 2


def sharing(trial: Trial) -> int:
    """Eight runs with the same data set, which none has drawn yet, or the same donor, which may be working itself."""
    chain, donor = chosen(trial), bool(trial.draws.integers(2)) or trial.short
    command, expected = uninterrupted(trial, chain)
    names, runs, leave = [f"copy{i}" for i in range(2 if trial.short else 8)], {}, OF_A_COPY
    if donor:
        copied(expected, trial.folder)
        for step in CHAINS[chain].split()[-int(trial.draws.integers(3)) or len(CHAINS[chain]):]:   # it works on these itself
            shutil.rmtree(trial.folder / "outputs" / RUN / step)
        runs[RUN] = start(command, trial.folder, RUN, output=RUN)
    for name in names:
        runs[name] = start((*command, f"name={name}", *[f"reuse_from=[{RUN}]"] * donor), trial.folder, name, output=name)
    try:
        for name, running in runs.items():
            if running.wait() != [0]:   # the donor makes, or a copy reads, what it needs
                refused(running)
                again = start((*command, f"name={name}", *[f"reuse_from=[{RUN}]"] * (donor and name != RUN)), trial.folder, name, output=name)
                runs[name] = again
        codes = {name: running.wait() for name, running in runs.items()}
        assert set(map(tuple, codes.values())) == {(0,)}, codes
    finally:
        _end(*runs.values())
    for name in runs:
        compare(trial.folder / "outputs" / name, expected / "outputs" / RUN, leave)
    return len(runs)


def readers(trial: Trial) -> Counter[str]:
    """Readers of a run while it works and ends its steps."""
    chain = chosen(trial)
    command, expected = uninterrupted(trial, chain)
    shutil.copytree(expected / "outputs" / RUN, trial.folder / "outputs/other")
    running, read = start(command, trial.folder, RUN, output="run"), Counter[str]()
    actions = {"report": (), "compare": (f"runs=[{RUN},other]",), "status": (), "plan": (), "verify": ()}
    try:
        until_it_works(running)
        while running.alive() and read.total() < (2 if trial.short else 40):
            action = str(trial.draws.choice(list(actions)[:2] if trial.short else list(actions)))
            reader = start((*command, f"action={action}", *actions[action]), trial.folder, RUN, output=f"{action}-{read.total()}")
            codes = reader.wait()
            said = reader.said()
            assert codes in ([0], [1]) and "Traceback" not in said, f"{action}: exit codes {codes}: {said}"
            assert codes == [0] or action in ("verify", "compare") and re.search(BUSY, said), f"{action}: {said}"
            read[action] += 1
        assert running.wait() == [0], running.said()
    finally:
        _end(running)
    shutil.rmtree(trial.folder / "outputs" / RUN / "report", ignore_errors=True)
    compare(trial.folder / "outputs" / RUN, expected / "outputs" / RUN)
    return read


def containers(trial: Trial) -> int:
    """A run in a process and host name space of its own, as in a container: another run is refused while it lives, and when it is
    dead, because nobody can know that; it says which file to delete. The host names are equal or not."""
    if not shutil.which("unshare") or subprocess.run([*CONTAINER, "true"], capture_output=True).returncode:
        raise Unavailable("unshare cannot make process and host name spaces here")
    command, expected = uninterrupted(trial, chain := chosen(trial))
    host = str(trial.draws.choice([os.uname().nodename, "elsewhere"]))
    inside = [*CONTAINER, "sh", "-c", 'hostname "$0" && exec "$@"', host]
    first = plain(command, trial.folder, RUN, inside, "first")
    try:
        while first.alive() and not (claims := _working(trial.folder)):
            time.sleep(TICK)
        first.send(signal.SIGSTOP)
        assert claims, first.said()
        number, named, claim = refused(start(command, trial.folder, RUN, output="second"))
        assert (number, named) == (1, host) and claim == claims[0], (number, named, claim, claims)
        if not trial.short:
            assert refused(plain(command, trial.folder, RUN, inside, "third"))[:2] == (1, host)   # it has the number 1 itself
        first.send(signal.SIGKILL)
        first.wait()
        if not trial.short:
            assert refused(start(command, trial.folder, RUN, output="fourth")) == (number, named, claim)
    finally:
        _end(first)
    claim.unlink()
    last = start(command, trial.folder, RUN)
    assert last.wait() == [0], last.said()
    compare(trial.folder / "outputs" / RUN, expected / "outputs" / RUN)
    return 4


def clocks(trial: Trial) -> int:
    """A run that is killed is continued by a clock that is an hour behind or ahead: by faketime, or else its files get such times."""
    chain = chosen(trial)
    command, expected = uninterrupted(trial, chain)
    hours = int(trial.draws.choice([-1, 1]))
    first = start(command, trial.folder, RUN)
    until_it_works(first, str(trial.draws.choice(CHAINS[chain].split()[1:-1])))
    first.send(signal.SIGKILL)
    first.wait()
    inside = ()
    if faketime := shutil.which("faketime"):   # its own process would wait for the run
        library = subprocess.run([faketime, "-m", "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True, check=True).stdout.strip()
        inside = ("env", f"LD_PRELOAD={library}", f"FAKETIME={hours:+}h")
    else:
        for path in trial.folder.rglob("*"):
            os.utime(path, (time.time() - HOUR * hours,) * 2)
    last = plain(command, trial.folder, RUN, inside)
    try:
        until_it_works(last)
        last.send(signal.SIGSTOP)   # so that it still works when the other one plans
        refused(start(command, trial.folder, RUN, output="refused"))
        last.send(signal.SIGCONT)
        assert last.wait() == [0], last.said()
    finally:
        _end(last)
    compare(trial.folder / "outputs" / RUN, expected / "outputs" / RUN)
    return 3


def _working(folder: Path) -> list[Path]:
    """The claims of runs that work on a step, whatever number their process has here."""
    paths = sorted((folder / "outputs" / RUN / ".locks").glob("*.json"))
    return [path for path in paths if json.loads(path.read_text())["now"]]


def _end(*runs: Running) -> None:
    for running in runs:
        running.send(signal.SIGKILL)


ROWS = [
    Row("one-folder", "the same command twice in one folder at once", in_one_folder, wanted=12, inputs="runs"),
    Row("sharing", "eight runs at once that draw and check one data set, or reuse from one run that may be working", sharing, wanted=4, inputs="runs"),
    Row("readers", "report, compare, status, plan and verify while a run works", readers, wanted=3, inputs="calls"),
    Row("containers", "process and host name spaces of their own, with equal and other host names; the owner alive, stopped and dead", containers,
        wanted=4, inputs="runs"),
    Row("clocks", "continued, and refused, by a clock that is an hour ahead or behind", clocks, wanted=4, inputs="runs"),
]
