"""Score thresholds and walks on the stored maps of a finished run, and print the best settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.actions.predict import made_with, seeds_of
from pipeline.cluster.machine import prepare_process
from pipeline.order import BY_NAME
from pipeline.plan.lists import derive_lists
from pipeline.report.kinds import TITLES
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import require_finished
from steps.parts.tuning import CONFIDENT_NAMES, SCORE_NAMES, TuneSettings, choosing_ids, tune
from steps.runtime.artifacts import write_json
from steps.runtime.context import StepContext
from wsss.data.dataset import Dataset
from wsss.files import write_text
from wsss.text import csv_text

FOLDER = "tune"
LINES = ("-", "--", ":", "-.")


@dataclass
class Settings:
    tune: TuneSettings


def do(pipeline: Any) -> dict[str, Any]:
    """The scores (`steps.parts.tuning.tune`). Writes nothing.

    Raises
    ------
    ConfigError
        if the run, its maps or the masks of `tune.split` do not exist, or that list is of test images.
    Stopped
        after SIGINT or SIGTERM.
    """
    pipeline.require_run()
    steps = finished_steps(pipeline.config, pipeline.folder)
    prepare_process(pipeline.config.threads, pipeline.device)
    pipeline.console.start("tune")
    with pipeline.reading(steps), pipeline.signals():
        return run_tune(pipeline.config, pipeline.dataset, pipeline.folder, steps, device=pipeline.device,
                        stop=lambda: pipeline.group.asked is not None, warn=pipeline.console.warning,
                        progress=pipeline.progress("tune"))


def run(pipeline: Any) -> int:
    result = do(pipeline)
    folder = place_of(pipeline.folder, result["labels"])
    write_tune(result, folder)
    for line in [*tune_lines(result), f"The run is unchanged. Curves and plot are in {folder}/"]:
        pipeline.console.result(line)
    return 0


def finished_steps(config: Any, folder: RunFolder) -> list[str]:
    """The finished steps of the run that are read. Raises ConfigError if it has no CAMs."""
    require_finished(folder, ("make_cam",), "tune")
    wanted = ("make_cam", "make_lpcam", "eval_cam", "train_irn", "make_sem_seg_labels")
    found = {step: manifest for step in wanted if step in config.steps and (manifest := folder.manifest(step))}
    return [step for step in found if not (step == "make_sem_seg_labels" and "imported" in found[step]["identity"])]


def run_tune(config: Any, dataset: Dataset, folder: RunFolder, steps: list[str], **runtime: Any) -> dict[str, Any]:
    """Tune on the finished `steps` of a run; return the result of `steps.parts.tuning.tune` with "labels", the list it used.

    `runtime`: the device, stop, progress and warn of the context.
    """
    ids = choosing_ids(dataset, config.tune)
    manifest, seed_maps = folder.manifest("make_sem_seg_labels"), config.seed_maps.value
    settings, precision = config.make_sem_seg_labels, config.precision.value
    if "make_sem_seg_labels" in steps:
        settings, precision = made_with(settings, manifest["settings"]), manifest["precision"]
        seed_maps = seeds_of(manifest)
    context = StepContext(settings=settings, dataset=dataset, lists={"ids": ids}, folder=folder.path, precision=precision,
                          inputs={step: folder.result(step) for step in steps}, seed_maps=seed_maps, **runtime)
    scored = set().union(*(lists.get("scored", ()) for name, lists in derive_lists(config, dataset).items()
                           if BY_NAME[name].kind == "score"))
    labels = {"list": config.tune.split, "held_out": config.tune.held_out, "images": len(ids),
              "also_scored": len(scored.intersection(ids))}
    return {"labels": labels, **tune(context, config.tune)}


def place_of(folder: RunFolder, labels: dict[str, Any]) -> Path:
    """The folder of the result: `tune/LIST` of the run, one for each list."""
    part = f"-{labels['held_out']:g}" if labels["held_out"] else ""
    return folder.path / FOLDER / f"{Path(labels['list']).stem}{part}"


def write_tune(result: dict[str, Any], folder: Path) -> None:
    """Write thresholds.csv, walk.csv, tune.png and finally tune.json."""
    rows: list[tuple] = [("maps", "threshold", *SCORE_NAMES, *CONFIDENT_NAMES)]
    for kind, swept in result["maps"].items():
        columns = [swept["curve"][name] for name in ("threshold", *SCORE_NAMES)]
        columns += [swept["confident"]["curve"][name] for name in CONFIDENT_NAMES]
        rows += [(kind, *row) for row in zip(*columns)]
    write_text(folder / "thresholds.csv", csv_text(rows))
    if result["walk"]:
        rows = [("beta", "exp_times", "threshold", *SCORE_NAMES)]
        for point in result["walk"]["points"]:
            rows += [(point["beta"], point["exp_times"], *row)
                     for row in zip(*(point["curve"][name] for name in ("threshold", *SCORE_NAMES)))]
        write_text(folder / "walk.csv", csv_text(rows))
    _plot(result, folder / "tune.png")
    write_json(folder / "tune.json", result)


def tune_lines(result: dict[str, Any]) -> list[str]:
    """The best values as text, the labels that chose them, and the command-line words that set them."""
    labels = result["labels"]
    part = f"{labels['held_out']:g} of " if labels["held_out"] else ""
    lines = [f"chosen by the masks of {labels['images']} images: {part}the list {labels['list']}"]
    if labels["also_scored"]:
        lines.append(f"{labels['also_scored']} of them are scored in this run too: these values are an oracle, not a result")
    for kind, swept in result["maps"].items():
        pair, run = swept["confident"], swept["run"]
        rule, best = pair["rule"], pair["best"]
        lines.append(f"  {TITLES[kind]:<8} background threshold {_at(swept['best'])}{f'; the run has {_at(run)}' if run else ''}")
        lines.append(f"  {'':<8} confident pair by the rule {rule['conf_fg']:g}, {rule['conf_bg']:g}: right for "
                     f"{_percent(rule['fg_right'])}, {_percent(rule['bg_right'])} of their pixels before the CRF; "
                     f"right for {_percent(pair['confidence'])}: {_value(best['conf_fg'])}, {_value(best['conf_bg'])}")
    if walk := result["walk"]:
        best, run = walk["best"], walk["run"]
        now = f", {_at(run)}" if "threshold" in run else ""
        lines.append(f"  {'walk':<8} beta {best['beta']:g}, exp_times {best['exp_times']}, background threshold {_at(best)}; "
                     f"the run has {run['beta']:g}, {run['exp_times']}{now}")
    return [*lines, "to set them: " + " ".join(settings_words(result))]


def settings_words(result: dict[str, Any]) -> list[str]:
    """The command-line words that set the best thresholds, the confident pair by the rule, and the walk."""
    words = [f"eval_cam.threshold.{kind}={swept['best']['threshold']:g}" for kind, swept in result["maps"].items()]
    if walk := result["walk"]:
        rule, best = result["maps"][walk["seed_maps"]]["confident"]["rule"], walk["best"]
        words += [f"cam_to_ir_label.{half}={rule[half]:g}" for half in ("conf_fg", "conf_bg")]
        words += [f"make_sem_seg_labels.{key}={best[name]:g}" for key, name in
                  (("beta", "beta"), ("exp_times", "exp_times"), ("bg_threshold", "threshold"))]
    return words


def _at(point: dict[str, Any]) -> str:
    return f"{point['threshold']:.2f} (mIoU {100 * point['miou']:.1f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _value(threshold: float | None) -> str:
    return "never" if threshold is None else f"{threshold:g}"


def _plot(result: dict[str, Any], path: Path) -> None:
    from pipeline.report.figures import COLOURS, png  # imported here because it is slow

    labels, walk = result["labels"], result["walk"]
    drawn = [(kind, TITLES[kind], swept) for kind, swept in result["maps"].items()]
    if walk:
        best = max(walk["points"], key=lambda point: point["best"]["miou"])
        drawn.append(("pseudo_masks", "walk (best)", {**best, "run": None}))
    with png(path, 15 if walk else 10, 4.2) as figure:
        maps, confident, *rest = figure.subplots(1, 3 if walk else 2)
        for kind, title, swept in drawn:
            maps.plot(swept["curve"]["threshold"], _in_percent(swept["curve"]["miou"]), color=COLOURS[kind], label=title)
            maps.plot(swept["best"]["threshold"], 100 * swept["best"]["miou"], "o", color=COLOURS[kind])
            if swept["run"]:
                maps.axvline(swept["run"]["threshold"], color=COLOURS[kind], linestyle=":", linewidth=1)
        maps.set(xlabel="background threshold", ylabel="mIoU, percent", title="dot: best; dotted: of the run")
        kind = walk["seed_maps"] if walk else list(result["maps"])[-1]
        pair, grid = result["maps"][kind]["confident"], result["maps"][kind]["curve"]["threshold"]
        for half, tone, name in (("fg", "b", "class"), ("bg", "a", "background")):
            for what, line, words in (("right", "-", "right"), ("share", "--", "share of pixels")):
                curve = _in_percent(pair["curve"][f"{half}_{what}"])
                confident.plot(grid, curve, line, color=COLOURS[tone], label=f"{name}: {words}")
            confident.axvline(pair["rule"][f"conf_{half}"], color=COLOURS[tone], linestyle=":", linewidth=1)
        confident.set(xlabel="threshold", ylabel="percent", title=f"confident pixels of {TITLES[kind]}; dotted: by the rule")
        for axes in rest:
            times = sorted({point["exp_times"] for point in walk["points"]})
            for number, exp_times in enumerate(times):
                points = [point for point in walk["points"] if point["exp_times"] == exp_times]
                axes.plot([point["beta"] for point in points], _in_percent([point["best"]["miou"] for point in points]),
                          LINES[number % len(LINES)], marker="o", color=COLOURS["pseudo_masks"], label=f"2^{exp_times} steps",
                          alpha=0.4 + 0.6 * (number + 1) / len(times))
            axes.set(xlabel="beta", ylabel="mIoU, percent", title="walk, each at its best threshold")
        for axes in figure.axes:
            axes.legend()
        scored = ", scored too" * bool(labels["also_scored"])
        figure.suptitle(f"chosen by {labels['images']} images of {labels['list']}{scored}", fontsize="small")


def _in_percent(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else 100 * value for value in values]
