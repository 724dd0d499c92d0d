"""Files that are damaged or made up, for every parser: each must end in a result or an error of ours, in bounded time and memory.

`fuzz_*` changes small valid files at random (`mutate`), in this process. `guided_*` lets atheris choose by the lines that are
reached, in a process of its own, and keeps the files that reach more in the campaign's folder; it needs `pip install -e ".[fuzz]"`.
"""

import importlib
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from PIL import Image

from tests.campaign.mutate import mutate
from tests.campaign.parsers import PARSERS, Parser
from tests.campaign.row import Row, Trial, Unavailable
from wsss.errors import WsssError

SECONDS, STUCK, BYTES = 5.0, 60, 2**30   # of CPU, of a clock, of memory, for one input
PIXELS = 500_000
INPUTS, WANTED = 50, 2000                # of a trial, and trials: 100,000 inputs
GUIDED, GUIDED_WANTED = 20_000, 5


class TooLong(BaseException):
    """No parser may take this for an error of the file."""


@contextmanager
def quiet() -> Iterator[None]:
    """Fewer pixels than Pillow's limit, whose decoding takes 0.5 GB; no warnings and log lines of the files."""
    limit, level = Image.MAX_IMAGE_PIXELS, logging.root.manager.disable
    Image.MAX_IMAGE_PIXELS = PIXELS
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
        logging.disable(level)


@contextmanager
def limited() -> Iterator[None]:
    """A limit of the memory that is added in the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def limits() -> Iterator[None]:
    """The signals that end an input that takes too long."""
    handlers = [(number, signal.signal(number, _stop)) for number in (signal.SIGPROF, signal.SIGALRM)]
    try:
        yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooLong


def tried(read: Callable[[bytes], object], content: bytes) -> None:
    """Read one content. Raises AssertionError unless it ends well."""
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 2 * SECONDS)
    signal.setitimer(signal.ITIMER_REAL, STUCK)
    try:
        with limited():
            read(content)
    except WsssError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError) or "not enough memory" in str(cause):
                raise AssertionError("it takes over 1 GB") from error
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    except TooLong as error:
        raise AssertionError(f"it takes over {2 * SECONDS:g} s") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    if (took := time.process_time() - start) > SECONDS:
        raise AssertionError(f"it takes {took:.1f} s")


def fuzz(trial: Trial, parser: Parser) -> int:
    """Read changed files. What went wrong is in the trial's folder as `input`."""
    importlib.import_module("wsss.official")   # with torch, whose libraries need more than the limit
    draws, seeds, inputs = random.Random(int(trial.draws.integers(2**62))), parser.seeds(), INPUTS // parser.slow
    place = trial.folder / "files"
    place.mkdir()
    read = parser.open(place)
    for content in seeds:
        read(content)   # valid files: else only the first check would be tried
    with limits(), quiet():
        for _ in range(inputs):
            content = mutate(draws.choice(seeds), parser.form, draws, seeds)
            try:
                tried(read, content)
            except BaseException:
                (trial.folder / "input").write_bytes(content)
                raise
    return inputs


def guided(trial: Trial, parser: Parser) -> int:
    """Read files that atheris chooses."""
    if find_spec("atheris") is None:
        raise Unavailable('needs atheris: pip install -e ".[fuzz]"')
    corpus = trial.made_once(f"corpus-{parser.name}", lambda folder: [
        (folder / f"seed-{number}").write_bytes(content) for number, content in enumerate(parser.seeds())])
    done = subprocess.run([sys.executable, "-m", "tests.campaign.guided", parser.name, str(corpus), f"-runs={GUIDED // parser.slow}", f"-artifact_prefix={trial.folder}/",
                           f"-timeout={SECONDS:g}", "-max_len=20000", f"-seed={int(trial.draws.integers(1, 2**31))}", "-print_final_stats=1",
                           "-rss_limit_mb=0", "-verbosity=0"], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise AssertionError(f"atheris ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return GUIDED // parser.slow


ROWS = ([Row(f"fuzz_{parser.name}", f"changed files for the parser {parser.name}", partial(fuzz, parser=parser), WANTED) for parser in PARSERS]
        + [Row(f"guided_{parser.name}", f"the same, guided by coverage: {parser.name}", partial(guided, parser=parser), GUIDED_WANTED, short=0) for parser in PARSERS])
