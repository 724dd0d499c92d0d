"""Each step against its official form: `python -m benchmarks.run [--quick] [--only NAME,...] [--json FILE]`.

`--list` lists the benchmarks. A time is the median of 5 interleaved calls after a warm-up; a form that takes over 10 s runs once.
Peak memory is that of a separate process, above its memory with the inputs.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks import (
    affinity_training,
    cams,
    crf,
    edam_training,
    evaluation,
    further_training,
    kmeans,
    lpcam,
    mctformer_training,
    random_walk,
    startup,
    training,
)
from benchmarks.harness import Builder, Row, as_json, machine, measure, table
from steps.runtime.concurrency import available_cores

MODULES = (random_walk, lpcam, kmeans, crf, cams, training, affinity_training, further_training, edam_training,
           mctformer_training, evaluation, startup)
BENCHMARKS: dict[str, Builder] = {name: build for module in MODULES for name, build in module.BENCHMARKS.items()}
ONE_THREAD = crf.ONE_THREAD                      # compared on one core


def main(words: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer images, under 5 minutes on two cores")
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--list", action="store_true", help="name the benchmarks")
    options = parser.parse_args(words)
    if options.list:
        print("\n".join(BENCHMARKS))
        return []
    names = options.only.split(",") if options.only else list(BENCHMARKS)
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    print(machine(), flush=True)
    rows, start = [], time.perf_counter()
    for name in names:
        print(f"{time.perf_counter() - start:6.0f} s  {name}", file=sys.stderr, flush=True)
        rows.append(measure(name, BENCHMARKS[name], options.quick, 1 if name in ONE_THREAD else options.threads))
        if options.json:
            options.json.write_text(as_json(rows) + "\n")
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
