"""The work of action=check_labels: train on two halves, judge each image by the classifier that did not see it, and rank."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.actions._finished import FinishedSteps
from pipeline.cluster.machine import prepared_process
from pipeline.order import BY_NAME
from pipeline.plan.lists import setup_of
from pipeline.runfolder.reading import require_finished
from steps.runtime.artifacts import read_json, write_json
from steps.runtime.context import Source, StepContext, settings_of
from steps.runtime.datasets import open_dataset
from steps.runtime.networks import load_classifier, network_input
from steps.runtime.schedule import WEIGHTS
from wsss.data.dataset import Dataset
from wsss.errors import ArtifactError, ConfigError
from wsss.files import storage, write_text
from wsss.metrics.label_doubts import contradictions, halves
from wsss.seeding import generator
from wsss.text import aligned, csv_text

FOLDER, TABLE, RECORD = "check_labels", "labels.csv", "check_labels.json"
SHOWN = 20   # images that are printed, and that the report shows
HEADS = ("image", "list", "labels", "doubt", "not_seen", "seen")
FEWEST = 4   # images: two in each half
SURE = 0.5   # a label is named if it is contradicted by more


@dataclass(frozen=True)
class Doubt:
    """The labels of an image as a classifier that did not train on it sees them. Probabilities by class name."""

    image_id: str
    list: str                      # train or val
    labels: tuple[str, ...]
    doubt: float                   # of the most contradicted label, in [0, 1]
    not_seen: dict[str, float]     # labelled classes that are contradicted, most first
    seen: dict[str, float]         # classes without a label that are found, most first

    @property
    def row(self) -> tuple[str, ...]:
        return (self.image_id, self.list, ";".join(self.labels), f"{self.doubt:.3f}", _names(self.not_seen), _names(self.seen))


def _names(probabilities: Mapping[str, float]) -> str:
    return ";".join(f"{name} {value:.2f}" for name, value in probabilities.items())


def check_labels(pipeline: Any) -> list[Doubt]:
    """See `pipeline.actions.check_labels.do`."""
    config, console, folder = pipeline.config, pipeline.console, pipeline.folder
    name = next(row.name for row in BY_NAME.values() if row.classify and not row.reads)
    finished = FinishedSteps.read(config, folder, BY_NAME)
    require_finished(folder, [name], FOLDER)
    dataset = pipeline.dataset = open_dataset(config.data)
    folder.check_data(pipeline.data_identity)
    out = folder.path / FOLDER
    with ExitStack() as held:
        with folder.claims.planning(console.warning):
            held.enter_context(folder.claims.hold([(FOLDER, 0, 1)], [name]))
        held.enter_context(prepared_process(config.threads, pipeline.device))
        held.enter_context(pipeline.signals())
        console.start(FOLDER)
        runtime = pipeline.runtime(progress=pipeline.progress(FOLDER), warn=console.warning)
        ids = BY_NAME[name].lists(setup_of(config, dataset, name))["ids"]
        context = finished.context(name, _framed(dataset, finished.manifests[name]), {"ids": ids, "log": ()}, runtime)
        context = replace(context, settings=replace(context.settings, weights=None))
        probabilities = _probabilities(context, finished.manifests[name]["fingerprint"], out)
        found = ranked(context, probabilities)
        write_text(out / TABLE, csv_text([HEADS, *(each.row for each in found)]))
    return found


def _framed(dataset: Dataset, manifest: Mapping[str, Any]) -> Dataset:
    """The data set with the size of images that the run's classifier works on."""
    data = manifest["identity"]["data"]
    return replace(dataset, **{key: data[key] for key in ("max_side", "min_side") if key in data})   # neither of an imported one


def _probabilities(context: StepContext, fingerprint: str, out: Path) -> dict[str, np.ndarray]:
    """id -> the probabilities (C,) of the classes, for each image of train and val whose labels are known; from the record in
    `out` if nothing changed since."""
    dataset = context.dataset
    ids = tuple(i for i in dict.fromkeys([*context.ids, *dataset.lists["val"]]) if i not in dataset.unlabelled)
    facts = {"classifier": fingerprint, "settings": _settings(context), "labels": dataset.digest_of_labels(ids),
             "images": dataset.digest_of_images(ids)}
    known = _read(out / RECORD)
    if known.get("facts") == facts and "probabilities" in known:
        return {image_id: np.array(row) for image_id, row in known["probabilities"].items()}
    if known.get("facts") != facts:   # begun with other labels, images or settings
        _remove_halves(out)
        write_json(out / RECORD, {"facts": facts})
    parts = train_halves(context)
    found: dict[str, np.ndarray] = {}
    for half, part in enumerate(parts):
        trained = replace(context, folder=out / f"half_{half}", lists={"ids": part, "log": ()})
        if not (trained.folder / WEIGHTS).exists():
            BY_NAME[context.name].run(trained)
        found |= _judged(trained, trained.folder, parts[1 - half])
    found |= _judged(context, context.folder, [i for i in ids if i not in found])
    write_json(out / RECORD, {"facts": facts, "probabilities": {i: found[i].tolist() for i in ids}})
    _remove_halves(out)
    return found


def _settings(context: StepContext) -> dict[str, Any]:
    """What the trainings depend on besides the images and labels."""
    return {"seed": context.seed, "precision": context.runtime.precision, context.name: settings_of(context.settings),
            **{family: context.methods[family].facts for family in ("backbone", "classifier")}}


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ArtifactError:
        return {}


def _remove_halves(out: Path) -> None:
    with storage(out):
        for folder in out.glob("half_*"):
            shutil.rmtree(folder)


def train_halves(context: StepContext) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ids of the two trainings. Raises ConfigError if there are too few."""
    ids = context.ids
    if len(ids) < FEWEST:
        raise ConfigError(f"action={FOLDER} trains on half of the {len(ids)} images of {context.name}; expected at least "
                          f"{FEWEST}: look at the labels yourself")
    labels = np.stack([context.dataset.label_vector(image_id) for image_id in ids])
    half = halves(labels, generator(context.seed, FOLDER))
    first, second = (tuple(image_id for image_id, its in zip(ids, half) if its == each) for each in range(2))
    return first, second


def _judged(context: StepContext, folder: Path, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """id -> the probabilities (C,) by the classifier in `folder`."""
    context = replace(context, inputs={"classifier": (Source(context.name, folder=folder),)})
    classifier, method, found = load_classifier(context), context.methods["classifier"], {}
    for number, image_id in enumerate(ids, 1):
        context.runtime.check_stop()
        with torch.inference_mode(), context.runtime.autocast():
            logits = classifier(network_input(context, classifier, image_id)).float()
        found[image_id] = np.round(method.probabilities(logits)[0].cpu().numpy().astype(np.float64), 5)   # as in the record
        context.runtime.progress(number, len(ids), "images judged")
    return found


def ranked(context: StepContext, probabilities: Mapping[str, np.ndarray]) -> list[Doubt]:
    """The images, the most contradicted labels first. A class that the judging classifier had no image of is not judged."""
    dataset, ids = context.dataset, list(probabilities)
    labels = np.stack([dataset.label_vector(image_id) for image_id in ids])
    taught = [np.max([dataset.label_vector(i) for i in part], axis=0) for part in train_halves(context)[::-1]]
    place = {i: half for half, part in enumerate(train_halves(context)) for i in part}
    everything = np.maximum(*taught)
    known = np.stack([taught[place[i]] if i in place else everything for i in ids]) > 0
    values = np.stack([probabilities[i] for i in ids])
    doubts = contradictions(values, labels, known)
    train = set(context.ids)
    found = []
    for row in np.argsort(-doubts.max(1), kind="stable"):
        strong = [c for c in np.argsort(-doubts[row], kind="stable") if doubts[row, c] > SURE]
        named = [{dataset.classes[c]: float(values[row, c]) for c in strong if (labels[row, c] > 0) == labelled}
                 for labelled in (True, False)]
        found.append(Doubt(ids[row], "train" if ids[row] in train else "val",
                           tuple(dataset.classes[c] for c in np.flatnonzero(labels[row])), float(doubts[row].max()), *named))
    return found


def lines(found: Sequence[Doubt]) -> list[str]:
    """The first rows as a table."""
    return aligned([HEADS, *(each.row for each in found)], left=(0, 1, 2, 4, 5))
