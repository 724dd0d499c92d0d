"""Claims on a run folder: two processes may work in one folder if neither makes a step that the other makes or reads.

While a run plans, it holds the lock `.locks/planning` (flock; the system releases it when the process ends). After planning
it writes a claim: a small file with its owner, the steps and shards it will make and the steps it reads. Another run that
plans reads the claims; it is refused if it collides with a claim of a living owner, and it deletes claims of dead owners.

An owner is a host, a process and, on a cluster, a Slurm job, whose state `squeue` reports on any node. A process number is
valid only in its pid namespace, because two containers may have the same host name and the same numbers.
"""

import fcntl
import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from wsss.errors import BusyError
from wsss.files import storage, write_text
from wsss.reading import parse_json

LOCKS = ".locks"
INITIAL = "pid:[4026531836]"   # the initial pid namespace of every Linux (PROC_PID_INIT_INO)
PATIENCE = 600.0   # seconds to wait for the planning of another run
_held: set[str] = set()   # the claims of this process; others that name it are left from a disk that was gone


@dataclass(frozen=True)
class Owner:
    """A process, identified by its number and start time."""

    host: str
    pid: int
    started: int          # clock ticks since boot; 0 if unknown
    job: str | None       # Slurm job id
    restarts: int = 0     # how often Slurm has restarted the job
    boot: str = ""        # random id of the boot; this and the next two are empty if unknown
    namespace: str = ""   # pid namespace
    machine: str = ""     # /etc/machine-id; empty in containers, whose images may share one

    @classmethod
    def me(cls) -> "Owner":
        environment, namespace = os.environ, _namespace()
        return cls(os.uname().nodename, os.getpid(), _start_ticks(os.getpid()), environment.get("SLURM_JOB_ID"),
                   int(environment.get("SLURM_RESTART_COUNT", 0)), _read("/proc/sys/kernel/random/boot_id"), namespace,
                   _read("/etc/machine-id") if namespace == INITIAL else "")

    def is_alive(self) -> bool:
        """Whether the owner still runs; True if this cannot be determined."""
        me = Owner.me()
        if not os.path.isdir("/proc/self") and self.host == me.host:
            return _runs(self.pid)
        if self.boot and self.namespace and (self.boot, self.namespace) == (me.boot, me.namespace):
            return _start_ticks(self.pid) == self.started
        if self.machine and (self.machine, self.host) == (me.machine, me.host) and self.boot and me.boot not in ("", self.boot):
            return False   # the machine has rebooted
        if self.job is None:
            return True
        if self.job == me.job:   # an earlier start of this job
            return self.restarts >= me.restarts
        return _job_is_known(self.job)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f" (Slurm job {self.job})" if self.job else "")


@dataclass(frozen=True)
class Claim:
    """The steps that a run makes, as (step, shard, shards) in order, the steps it reads, and the step it works on `now`."""

    owner: Owner
    since: str                                 # local time, ISO 8601
    makes: tuple[tuple[str, int, int], ...]
    reads: tuple[str, ...]
    now: str | None = None                     # None while planning

    def collides(self, other: "Claim") -> str | None:
        """The first step in conflict, or None."""
        for step, shard, shards in self.makes:
            for their_step, their_shard, their_shards in other.makes:
                if step == their_step and (shards != their_shards or shard == their_shard):
                    return step
            if step in other.reads:
                return step
        return next((step for step, _, _ in other.makes if step in self.reads), None)


class Claims:
    """The claims on one run folder."""

    def __init__(self, run: Path):
        self.run, self.folder = run, run / LOCKS

    @contextmanager
    def planning(self, say: Callable[[str], None] = lambda message: None) -> Iterator[None]:
        """Hold the planning lock; wait if another run holds it, and say whose process it is.

        Raises BusyError if the other run still plans after ten minutes.
        """
        path = self.folder / "planning"
        with storage(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")
        with file:
            start, said = time.monotonic(), False
            while not _locked(file.fileno(), say, self.run):
                waited = time.monotonic() - start
                if waited > 2 and not said:
                    say(f"{self.run}: waiting for another run that is planning: {_holder(path)}")
                    said = True
                if waited > PATIENCE:
                    raise BusyError(f"{self.run}: another run has been planning for over {PATIENCE / 60:.0f} minutes: "
                                    f"{_holder(path)}. Stop it or let it go on, or choose another run with name=NAME")
                time.sleep(0.1)
            with suppress(OSError):   # the text is only for messages
                file.truncate(0)
                file.write(json.dumps({"owner": asdict(Owner.me()), "since": _now()}))
                file.flush()
            try:
                yield
            finally:
                with suppress(OSError):
                    file.truncate(0)

    @contextmanager
    def hold(self, makes: Iterable[tuple[str, int, int]], reads: Iterable[str]) -> Iterator[Callable[..., None]]:
        """Claim steps; call it while planning. Yields a function that updates the claim when steps are finished.

        Raises BusyError if the claim collides with that of another run; names its owner and start time.
        """
        claim = Claim(Owner.me(), _now(), tuple(makes), tuple(reads))
        for other, path in self._living(clean=True):
            if step := claim.collides(other):
                raise BusyError(f"{self.run}: {step} is in use by {other.owner} since {other.since}. Wait for it, stop it, or "
                                f"choose another run with name=NAME. (If it no longer runs, delete {path})")
        path = self.folder / f"{claim.owner.host}-{claim.owner.pid}-{uuid.uuid4().hex[:8]}.json"

        def change(makes: Iterable[tuple[str, int, int]], reads: Iterable[str], now: str | None) -> None:
            write_text(path, json.dumps(asdict(Claim(claim.owner, _now(), tuple(makes), tuple(reads), now))))
        _held.add(path.name)
        try:
            change(claim.makes, claim.reads, None)
            yield change
        finally:
            _held.remove(path.name)
            with suppress(OSError):   # on a read-only disk the claim stays, with a dead owner
                path.unlink(missing_ok=True)

    def living(self) -> list[Claim]:
        """The claims of running owners; writes nothing."""
        return [claim for claim, _ in self._living(clean=False)]

    def _living(self, clean: bool) -> list[tuple[Claim, Path]]:
        found, me = [], Owner.me()
        for path in sorted(self.folder.glob("*.json")):
            try:
                claim = _claim(path)
            except FileNotFoundError:   # just released
                continue
            except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
                raise BusyError(f"{path} is not a claim of a run ({error!r}). Delete it if no run works in {self.run}") from error
            if claim is None:
                raise BusyError(f"{path} is not a claim of a run (its owner). Delete it if no run works in {self.run}")
            if claim.owner.is_alive() and (claim.owner != me or path.name in _held):
                found.append((claim, path))
            elif clean:
                with storage(path):
                    path.unlink(missing_ok=True)
        return found


def _locked(descriptor: int, say: Callable[[str], None], run: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:   # some network file systems have no locks
        say(f"{run}: no lock could be taken while planning ({error.strerror}): start one run on this folder at a time")
    return True


def _holder(path: Path) -> str:
    """Who holds the planning lock, for a message."""
    try:
        held = parse_json(path.read_text(encoding="utf-8"))
        return f"{Owner(**held['owner'])} since {held['since']}"
    except (OSError, ValueError, KeyError, TypeError):   # it could not write it, or has just begun
        return "its process is not known"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _claim(path: Path) -> Claim | None:
    """A claim in a file; None if its owner is none, whose values go into paths and commands. Raises almost anything for a file
    of another form."""
    values = parse_json(path.read_text(encoding="utf-8"))
    owner = Owner(**values["owner"])
    makes = tuple((str(step), int(shard), int(shards)) for step, shard, shards in values["makes"])
    texts = (owner.host, owner.job or "", owner.boot, owner.namespace, owner.machine, values["since"], values["now"] or "")
    numbers = (owner.pid, owner.started, owner.restarts)
    valid = (all(isinstance(text, str) for text in texts) and re.fullmatch(r"[0-9_+.]*", owner.job or "") is not None
             and all(type(number) is int and 0 <= number < 2**63 for number in numbers))
    return Claim(owner, values["since"], makes, tuple(map(str, values["reads"])), values["now"]) if valid else None


def _start_ticks(pid: int) -> int:
    """The start time of a process in clock ticks since boot; 0 if there is no such process or no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state, *fields = text.rpartition(")")[2].split()   # the process name may contain spaces
    return 0 if state in "ZX" else int(fields[18])


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _job_is_known(job: str) -> bool:
    """Whether squeue lists the job; True if squeue fails."""
    try:
        answer = subprocess.run(["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True,
                                timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return True
    if answer.returncode:
        return "Invalid job id" not in answer.stderr
    return bool(answer.stdout.strip())
