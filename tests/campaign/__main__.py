"""Run the campaign; see the package."""

import argparse
import fcntl
import importlib
import json
import os
import pkgutil
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import tests.campaign
from tests.campaign.row import FOLDER, Row, Trial, Unavailable


@dataclass
class Count:
    """What was counted of a row."""

    trials: int = 0
    inputs: int = 0
    kinds: dict[str, int] = field(default_factory=dict)   # of the inputs, where a row tells them apart
    seconds: float = 0.0
    failed: list[int] = field(default_factory=list)   # numbers of the trials
    unavailable: str = ""                             # why this machine cannot do it


def rows() -> list[Row]:
    """The rows of all modules of the package."""
    names = sorted(module.name for module in pkgutil.iter_modules(tests.campaign.__path__) if not module.name.startswith("__"))
    modules = [importlib.import_module(f"tests.campaign.{name}") for name in names]
    return [row for module in modules for row in getattr(module, "ROWS", ())]


def read(folder: Path) -> dict[str, Count]:
    """The counts so far."""
    file = folder / "campaign.json"
    return {name: Count(**values) for name, values in json.loads(file.read_text()).items()} if file.exists() else {}


def write(folder: Path, counts: dict[str, Count]) -> None:
    """Write the counts so that a kill leaves the old or the new ones."""
    new = folder / f"campaign.json.{os.getpid()}"
    new.write_text(json.dumps({name: asdict(count) for name, count in counts.items()}, indent=1))
    new.replace(folder / "campaign.json")


def attempt(row: Row, number: int, folder: Path, seed: int = 0, short: bool = False) -> int | Mapping[str, int]:
    """One trial, in a folder of its own, which stays if the trial raises."""
    own = folder / f"{row.name}-{number}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    inputs = row.trial(Trial(row.draws(seed, number), own.resolve(), (folder / "shared").resolve(), short))
    shutil.rmtree(own)
    return inputs


def count(row: Row, counts: dict[str, Count], folder: Path, seed: int) -> None:
    """The next trial of a row, counted."""
    so_far, start = counts.setdefault(row.name, Count()), time.perf_counter()
    try:
        tried = attempt(row, so_far.trials, folder, seed)
        for kind, inputs in tried.items() if isinstance(tried, Mapping) else ():
            so_far.kinds[kind] = so_far.kinds.get(kind, 0) + inputs
        so_far.inputs += sum(tried.values()) if isinstance(tried, Mapping) else tried
    except Unavailable as error:
        so_far.unavailable = str(error)
        shutil.rmtree(folder / f"{row.name}-{so_far.trials}", ignore_errors=True)
    except Exception:
        so_far.failed.append(so_far.trials)
        print(f"{row.name}:{so_far.trials} failed; its folder is kept", file=sys.stderr)
        traceback.print_exc()
    so_far.trials += not so_far.unavailable
    so_far.seconds += time.perf_counter() - start
    write(folder, counts)


def following(wanted: list[Row], counts: dict[str, Count]) -> Row | None:
    """The row with the smallest share of its wanted trials; None if all have them."""
    shares = {row.name: counts.get(row.name, Count()).trials / row.wanted for row in wanted
              if not counts.get(row.name, Count()).unavailable}
    return min((row for row in wanted if shares.get(row.name, 1) < 1), key=lambda row: shares[row.name], default=None)


def table(chosen: list[Row], counts: dict[str, Count]) -> str:
    """The counts as a table in Markdown, and the machine and day."""
    lines = ["| row | what is tried | trials | inputs | failed | minutes |", "|---|---|---|---|---|---|"]
    for row in chosen:
        each = counts.get(row.name, Count())
        failed = each.unavailable or ", ".join(map(str, each.failed)) or "0"
        lines.append(f"| `{row.name}` | {row.about} | {each.trials} | {each.inputs:,} {row.inputs} | {failed} | "
                     f"{each.seconds / 60:.1f} |")
    kinds = {row.name: counts[row.name].kinds for row in chosen if row.name in counts and counts[row.name].kinds}
    lines += ["", *(f"`{name}`: {', '.join(f'{kind} {inputs:,}' for kind, inputs in of.items())}." for name, of in kinds.items())]
    return "\n".join([*lines, "", f"{date.today()}, {platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}, "
                      f"Python {platform.python_version()}"])


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside this context no other campaign works in the folder."""
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another campaign works in {folder}: wait for it, or choose another --folder")
        yield


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=tests.campaign.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="names of rows, or the beginnings of them; by default all")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    parser.add_argument("--only", metavar="ROW:NUMBER", help="repeat one trial, uncounted")
    chosen = parser.parse_args(arguments)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    wanted = [row for row in rows() if not chosen.rows or row.name.startswith(tuple(chosen.rows))]
    if not wanted:
        parser.error(f"no row begins with {', '.join(chosen.rows)}: expected {', '.join(row.name for row in rows())}")
    counts = read(chosen.folder)
    if not chosen.table:
        with alone(chosen.folder):
            if chosen.only:
                name, _, number = chosen.only.partition(":")
                attempt(next(row for row in rows() if row.name == name), int(number), chosen.folder, chosen.seed)
                return 0
            counts, end = read(chosen.folder), time.monotonic() + 60 * chosen.minutes
            while time.monotonic() < end and (row := following(wanted, counts)):
                count(row, counts, chosen.folder, chosen.seed)
    print(table(wanted, counts))
    return int(any(counts.get(row.name, Count()).failed for row in wanted))


if __name__ == "__main__":
    sys.exit(main())
