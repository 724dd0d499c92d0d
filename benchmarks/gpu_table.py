"""The results of `benchmarks.gpu` as Markdown, for docs/performance.md."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.voc_scale import TRAIN_AUG
from wsss.text import duration


def table(key: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]], skipped: Mapping[str, str]) -> str:
    """`parts`: what was measured with `key`, by name; `skipped`: reasons, by name."""
    results = {name: entry["result"] for name, entry in parts.items() if "result" in entry}
    lines = [f"{key['machine']}; code {key['code']}" + "; tiny sizes (--quick)" * key["quick"]]
    if tests := results.get("tests"):
        lines += ["", f"Tests marked cuda: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped."]
    if parity := results.get("parity"):
        lines += ["", *_rows(("against the CPU", "greatest difference", "limit", "same bits twice"), map(_stage, parity["rows"]))]
    if rows := [row for result in results.values() if "failures" not in result for row in result.get("rows", [])]:
        lines += ["", *_rows(("benchmark, size", "official form", "official, s", "ours, s", "ratio", "difference",
                              "GPU MiB: official, ours"), map(_benchmark, rows))]
    if steps := results.get("voc_scale"):
        lines += ["", *_rows(("step", "images", "seconds", "images per second", "host MiB: expected, peak",
                              "GPU MiB: expected, peak", "peak / expected", f"{TRAIN_AUG:,} images"), map(_step, steps["steps"]))]
    operations = {operation: name for name, entry in parts.items() for operation in entry["nondeterministic"]}
    if operations:
        lines += ["", "Without a deterministic form: " + ", ".join(f"{each} ({name})" for each, name in operations.items())]
    lines += [f"\nFAILED {name}: {entry['error']}" for name, entry in parts.items() if "error" in entry]
    lines += [f"\nNot measured: {name} ({why})" for name, why in skipped.items()]
    return "\n".join(lines)


def _rows(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _stage(row: Mapping[str, Any]) -> list[str]:
    return [row["stage"], f"{row['difference']:.2g} {row['unit']}", f"{row['limit']:.2g}", _said(row["same_bits"])]


def _benchmark(row: Mapping[str, Any]) -> list[str]:
    return [f"`{row['name']}` {row['size']}, {row['form']}", row["against"], _number(row["official_s"]), _number(row["ours_s"]),
            _number(row["ratio"]), _number(row["max_difference"]), _pair(row["official_peak_mb"], row["ours_peak_mb"])]


def _step(row: Mapping[str, Any]) -> list[str]:
    expected, peak = row["expected_cuda_mb"], row["cuda_mb"]
    share = f" ({row['of_bare_forward']:.0%} of the bare forward's speed)" if "of_bare_forward" in row else ""
    return [row["step"], str(row["images"]), f"{row['seconds']:.1f}", f"{row['images_per_s']:.1f}{share}",
            _pair(row["expected_host_mb"], row["host_mb"]), _pair(expected, peak),
            _number(peak / expected if peak and expected else None), duration(row["projected_s"])]


def _said(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _pair(*values: float | None) -> str:
    return "" if set(values) == {None} else ", ".join(map(_number, values))


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
