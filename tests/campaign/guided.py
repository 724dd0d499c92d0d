"""`python -m tests.campaign.guided PARSER CORPUS [libFuzzer's options]`: one parser under atheris."""

import os
import random
import signal
import sys
import tempfile
import warnings
from pathlib import Path

if __name__ == "__main__":
    import atheris

    os.nice(10)
    with atheris.instrument_imports(include=["wsss", "steps", "pipeline"]):
        from tests.campaign.fuzz import _stop, tried
        from tests.campaign.mutate import mutate
        from tests.campaign.parsers import PARSERS

        parser = next(parser for parser in PARSERS if parser.name == sys.argv[1])
        seeds = parser.seeds()
        folder = tempfile.TemporaryDirectory()
        read = parser.open(Path(folder.name))
        for content in seeds:
            read(content)   # the modules that it imports late
    warnings.simplefilter("ignore")
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _stop)

    def change(content: bytes, most: int, seed: int) -> bytes:
        draws = random.Random(seed)
        return mutate(content, parser.form, draws, seeds)[:most] if draws.random() < 0.7 else atheris.Mutate(content, most)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda content: tried(read, content), custom_mutator=change)
    atheris.Fuzz()
