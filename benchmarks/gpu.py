"""All that needs a GPU, in one command of at most 6 minutes: `python -m benchmarks.gpu [--out DIR]`.

In this order: the tests marked cuda, the results against the CPU's (`benchmarks.parity`), our forms beside the official ones,
every kind of map beside torchcam's (`benchmarks.extractors`), and all steps on 200 images with the memory that the plan expected
(`benchmarks.voc_scale`). Both forms of a row have a run's settings: no TF32, deterministic algorithms.

Each part runs in a process of its own, with its output in DIR/PART.log, and is in DIR/gpu.json once it is finished. The same
command continues with the parts that are missing or failed; finished ones are kept for the same code, device and settings. The
table is printed at the end. Exit status: 0, all parts are measured; 1, a part failed; 3, parts did not fit into the time.
`--device cpu --quick` tries the script out.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("benchmarks", "conf", "pipeline", "steps", "tests", "wsss")
BUDGET = 350.0          # seconds of a call
SKIPPED = 3             # exit status
VOC = ("precision=bf16", "report.write=false")
VOC_QUICK = ("data.max_side=96", "train_cam.epochs=1", "train_irn.epochs=1", "train_cam.crop_size=96", "train_irn.crop_size=96",
             "train_cam.batch_size=2", "train_irn.batch_size=2", "make_cam.scales=[1.0]", "make_lpcam.n_clusters=2",
             "precision=float32", "threads=1", "report.write=false")
NONDETERMINISTIC = re.compile(r"(\w+) does not have a deterministic implementation")


class Part(NamedTuple):
    measure: Callable[[Any, bool], dict]   # (device, quick) -> a dict of JSON values; "failures" in it are failures of the part
    seconds: float                         # assumed on a GPU: a part for which less is left is not begun


def run_tests(device: Any, quick: bool) -> dict:
    """The tests marked cuda, which turn operations without a deterministic form into errors; without CUDA all are skipped."""
    import pytest

    outcomes: dict[str, str] = {}

    class Plugin:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or report.outcome != "passed":
                outcomes[report.nodeid] = report.outcome
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text()]
    status = pytest.main(["-o", "addopts=", "-p", "no:cacheprovider", "-q", "-m", "cuda", *files], plugins=[Plugin()])
    counts = {outcome: list(outcomes.values()).count(outcome) for outcome in ("passed", "skipped", "failed")}
    failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
    return {**counts, "failures": failed or ([f"pytest ended with {status}"] if status else [])}


def run_parity(device: Any, quick: bool) -> dict:
    import torch

    from benchmarks.parity import parity

    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)   # a run only warns
    return parity(device, quick)


def measured(cases: dict[str, Callable]) -> Callable[[Any, bool], dict]:
    """A part with a row for each case: (device, quick) -> `harness.Case`."""
    def measure(device: Any, quick: bool) -> dict:
        import torch

        from benchmarks import harness

        repeats, threads = 1 if quick else harness.REPEATS, torch.get_num_threads()
        rows = [harness.measure(name, lambda quick, case=case: case(device, quick), quick, threads, repeats, peaks=False)
                for name, case in cases.items()]
        return {"rows": [asdict(row) for row in rows]}
    return measure


def _walk(device: Any, quick: bool) -> Any:
    from benchmarks.random_walk import walk_case

    return walk_case(*((64, 80) if quick else (375, 500)), 2, device=device)


def _crf(device: Any, quick: bool) -> Any:
    from benchmarks.crf import crf_case

    return crf_case(quick, device)


def _make_cam(precision: str) -> Callable:
    def case(device: Any, quick: bool) -> Any:
        from benchmarks.cams import step_case
        from steps import make_cam

        return step_case(quick, make_cam, precision, 1 if quick else 16, device)
    return case


def _make_cam_official(device: Any, quick: bool) -> Any:
    from benchmarks.cams import cam_case

    return cam_case((64, 80) if quick else (375, 500), device=device)


def _train(module: str, case: str, sizes: tuple[int, int], precision: str) -> Callable:
    """`sizes`: the batch and the crop."""
    def build(device: Any, quick: bool) -> Any:
        from importlib import import_module

        return getattr(import_module(f"benchmarks.{module}"), case)(quick, precision, (2, 96) if quick else sizes, device)
    return build


def run_extractors(device: Any, quick: bool) -> dict:
    from benchmarks.extractors import cases

    return measured(cases())(device, quick)


def run_voc(device: Any, quick: bool) -> dict:
    from benchmarks.voc_scale import measure

    return {"steps": measure(4 if quick else 200, None, (f"device={device.type}", *(VOC_QUICK if quick else VOC)))}


TRAININGS = {"train_cam": ("training", "cam_case", (16, 512)), "train_irn": ("affinity_training", "irn_case", (16, 512))}
PARTS = {
    "tests": Part(run_tests, 60), "parity": Part(run_parity, 60),
    "random_walk": Part(measured({"random_walk": _walk}), 20), "dense_crf": Part(measured({"dense_crf": _crf}), 30),
    "make_cam": Part(measured({"make_cam": _make_cam("float32"), "make_cam_bf16": _make_cam("bf16"),
                               "make_cam_official": _make_cam_official}), 40),
    **{name: Part(measured({f"{name}{ending}": _train(*where, precision)
                            for ending, precision in (("", "float32"), ("_bf16", "bf16"))}), 30)
       for name, where in TRAININGS.items()},
    "train_seg": Part(measured({"train_deeplab_bf16": _train("deeplab_training", "deeplab_case", (10, 321), "bf16"),
                                "train_upernet_bf16": _train("upernet_training", "upernet_case", (4, 512), "bf16")}), 45),
    "extractors": Part(run_extractors, 60), "voc_scale": Part(run_voc, 100)}


def code_version() -> str:
    """A digest of the sources."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def describe(device: str) -> str:
    """The machine; on a GPU, asked for in another process, because this one must not use it."""
    code = ("import torch; from benchmarks.harness import machine; "
            f"print(machine() + ('; ' + torch.cuda.get_device_name() if {device == 'cuda'} else ''))")
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"--device {device}: torch cannot use it: {(found.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return found.stdout.strip()


def run_part(name: str, options: argparse.Namespace, left: float) -> dict[str, Any] | None:
    """What a part measured in a process of its own, or its error; None if it took longer than `left` seconds."""
    log, result, start = options.out / f"{name}.log", options.out / f"{name}.json", time.perf_counter()
    words = ["--device", options.device, "--out", str(options.out), "--part", name, *["--quick"] * options.quick]
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **os.environ}   # read when CUDA starts
    result.unlink(missing_ok=True)
    with open(log, "w") as output:
        try:
            status = subprocess.run([sys.executable, "-m", "benchmarks.gpu", *words], cwd=ROOT, env=environment, stdout=output,
                                    stderr=subprocess.STDOUT, timeout=left).returncode
        except subprocess.TimeoutExpired:
            return None
    entry: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1)}
    text = log.read_text(errors="replace")
    entry["nondeterministic"] = sorted(set(NONDETERMINISTIC.findall(text)))
    if result.exists():
        entry["result"] = json.loads(result.read_text())
        result.unlink()
    failures = entry.get("result", {}).get("failures", [])
    if status or failures:
        entry["error"] = "; ".join(failures) or f"exit status {status}: {text.strip()[-1500:]}"
    return entry


def child(options: argparse.Namespace) -> int:
    """Measure one part in this process."""
    import torch

    from pipeline.cluster.machine import prepared_process
    from wsss.files import write_text

    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.init()   # the peaks of the first row
    with prepared_process(1 if options.quick else None, device):
        write_text(options.out / f"{options.part}.json", json.dumps(PARTS[options.part].measure(device, options.quick)))
    return 0


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to try the script out")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="folder of gpu.json and the logs")
    parser.add_argument("--seconds", type=float, default=BUDGET, help="time of this call")
    parser.add_argument("--again", action="store_true", help="measure all parts anew")
    parser.add_argument("--part", choices=PARTS, help="measure this part in this process; its result is DIR/PART.json")
    options = parser.parse_args(words)
    options.out = options.out.resolve()
    return options


def main(words: list[str] | None = None) -> int:
    start, options = time.perf_counter(), arguments(words)
    if options.part:
        return child(options)
    from benchmarks.gpu_table import table
    from wsss.files import write_text

    key = {"code": code_version(), "machine": describe(options.device), "device": options.device, "quick": options.quick}
    path, began = options.out / "gpu.json", False
    options.out.mkdir(parents=True, exist_ok=True)
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    kept = {name for name, entry in parts.items() if entry["key"] == key and "error" not in entry and not options.again}
    skipped: dict[str, str] = {}
    for name, part in PARTS.items():
        if name in kept:
            continue
        left = options.seconds - (time.perf_counter() - start)
        if left < (0 if options.quick or not began else part.seconds) or left <= 0:
            skipped[name] = f"{max(left, 0):.0f} s were left"
            continue
        print(f"{options.seconds - left:6.0f} s  {name}", file=sys.stderr, flush=True)
        entry, began = run_part(name, options, left), True
        if entry is None:
            skipped[name] = f"cut off after {left:.0f} s"
            continue
        parts[name] = {"key": key, **entry}
        write_text(path, json.dumps({"parts": parts}, indent=1) + "\n")
    parts = {name: parts[name] for name in PARTS if name in parts and parts[name]["key"] == key}
    print(table(key, parts, skipped))
    return 1 if any("error" in entry for entry in parts.values()) else SKIPPED if skipped else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))   # an exception also ends the process of the part
    sys.exit(main())
