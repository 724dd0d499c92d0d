"""Measure how well each kind of map says what the classifier looks at: no masks, no boxes. Not a step of the official code.

Deletion and insertion, average drop and increase and ROAD of every kind of map, beside a random map and an edge detector; and, of
the method `cam`, how similar the maps stay when the layers of the network are random (`wsss.metrics.faithfulness`,
`wsss.metrics.randomisation`). Reads the maps and the classifier; writes `images/ID.json`, what was measured of an image, so that
an interrupted step continues, and `scores.json`.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steps.parts.outcome import Outcome, Remark
from steps.parts.pieces import Curve, Kind, Line, Table
from steps.parts.scored_maps import read_maps
from steps.parts.thresholds import SCORES
from steps.runtime.artifacts import check_keys, read_json, write_json
from steps.runtime.context import StepContext
from steps.runtime.inference import Made, for_each_image
from steps.runtime.journal import INDEX, JOURNALS, join_divisions
from steps.runtime.store import Layout
from steps.step import SCORE, Lists, Needs, Setup, StepSettings, facts
from wsss.errors import ConfigError
from wsss.seeding import generator

VERSION = 2
KIND = SCORE
BASELINES = ("mean", "blur")
SECTION = "faithfulness"   # of the report


@dataclass
class Settings(StepSettings):
    """`eval_faithfulness.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # the list; null: val, or train without a val list
    images: int                  # at most this many of its images, chosen by the seed
    steps: int                   # of deletion and insertion
    deletion: str                # what takes the place of deleted pixels: the mean colour, or the blurred image
    insertion: str               # what the image is inserted into
    blur_size: int               # of the blurred image, in pixels of an image of 224; larger images are blurred more
    blur_sigma: float            # the same
    road: list[float]            # shares of the pixels that ROAD removes; empty: no ROAD
    road_noise: float            # of the imputed pixels, in units of the normalised image
    randomised: int              # images of which maps are made by networks with random layers; 0: none
    batch: int                   # images in the network at once

    def __post_init__(self) -> None:
        for key in ("images", "steps", "blur_size", "batch"):
            self.require(getattr(self, key) >= 1, key, "at least 1")
        for key in ("deletion", "insertion"):
            self.require(getattr(self, key) in BASELINES, key, f"one of {', '.join(BASELINES)}")
        self.require(self.blur_sigma > 0, "blur_sigma", "above 0")
        self.require(all(0 < share < 1 for share in self.road), "road", "shares above 0 and below 1")
        self.require(self.road_noise >= 0, "road_noise", "at least 0")
        self.require(0 <= self.randomised <= self.images, "randomised", f"from 0 to the {self.images} images of the key images")


def lists(setup: Setup) -> Lists:
    """The images that are measured: those of the list with a known class, or a part of them. Raises ConfigError without any."""
    dataset, settings = setup.dataset, setup.settings
    val = [image_id for image_id in dataset.lists["val"] if image_id not in dataset.unlabelled]
    ids = setup.ids(val or dataset.lists["train"])
    with_class = [image_id for image_id in ids if dataset.labels[image_id] or image_id in dataset.unlabelled]
    if not with_class:
        raise ConfigError(f"{setup.name}.split: none of the {len(ids)} images of the list shows a class, expected at least one: "
                          f"maps are of classes. Choose another list, or take {setup.name} out of steps")
    drawn = generator(setup.config.seed, setup.name, "images").permutation(len(with_class))[:settings.images]
    return {"measured": tuple(with_class[place] for place in sorted(drawn))}


def identity(setup: Setup) -> dict[str, Any]:
    kinds = [kind for source in setup.sources.get("maps", ()) for kind in source.kinds]
    return {**facts(setup, "seed", "precision", *["cam"] * (setup.settings.randomised > 0)), "kinds": kinds}


def check(setup: Setup) -> None:
    from steps.runtime.networks import planned_classifier

    if setup.settings.randomised:
        setup.methods["cam"].check(planned_classifier(setup))


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate, weights

    estimate, settings = Estimate(setup), setup.settings
    network, images = estimate.classifier(), estimate.images("measured")
    kinds = 2 + sum(len(source.kinds) for source in setup.sources.get("maps", ()))
    values = 2 * (settings.steps + 1) + 1 + 2 * len(settings.road)
    passing = estimate.forwards(network, network, images, batch=settings.batch)
    passing += images.most(12 * max(settings.steps + 1, len(settings.road), 1))   # the changed images of one curve, float32
    if settings.road:
        passing += estimate.on_host(images.most(ROAD_MEMORY))
    return estimate.finish(10 * values * kinds * images.shown, (3 if settings.randomised else 1) * weights(network), passing)


ROAD_MEMORY = 1500   # bytes a pixel: the equations and their factors; measured at 375 x 500 pixels: 1150 to 1400


def run(context: StepContext) -> dict[str, Any]:
    from steps.parts.faithfulness import Measuring, Randomising, dependence, shares, similarities, summary, verdicts

    settings, ids = context.settings, context.lists["measured"]
    runtime = replace(context.runtime, layout=Layout.files)
    work = replace(context, lists={"ids": ids}, runtime=runtime)
    runtime.group.broadcast(lambda: join_divisions(context.folder, ids, runtime.group.size))
    measure = Measuring(work, read_maps(context))
    randomised = frozenset(ids[:settings.randomised])
    similar = Randomising(work) if randomised else None

    def make(image_id: str) -> Made:
        alike = similar(image_id) if similar and image_id in randomised else None
        found = {"faithfulness": measure(image_id), "randomised": alike}
        return {f"images/{image_id}.json": json.dumps(found).encode()}, {}

    for_each_image(work, make)
    if not runtime.group.is_main:
        return {}
    found = [read_json(context.folder / f"images/{image_id}.json") for image_id in ids]
    measured = [each["faithfulness"] for each in found]
    alike = similarities([each["randomised"] for each in found if each["randomised"]]) if randomised else {}
    method = context.methods["cam"]
    title = method.title or method.method
    sentences = verdicts(measured) + (dependence(alike, title, len(randomised)) if alike else [])
    write_json(context.folder / SCORES, {
        "images": len(ids), "maps": sum(len(next(iter(each.values()))) for each in measured), "shares": shares(settings.steps),
        "road": list(settings.road), "kinds": summary(measured), "verdicts": sentences,
        "randomised": {"images": len(randomised), "method": title, "similar": alike}})
    # all are measured: from here on their files are those of the step, which are verified and reused as a whole
    shutil.rmtree(context.folder / JOURNALS, ignore_errors=True)
    (context.folder / INDEX).unlink(missing_ok=True)
    return {"verdicts": sentences}


def reader(folder: Path, n_classes: int) -> None:
    check_keys(folder / SCORES, ("images", "maps", "shares", "road", "kinds", "verdicts", "randomised"))


def tables(folder: Path) -> Iterator[Table]:
    """The measures of every kind of map and of the controls; how similar maps stay with random layers."""
    from steps.parts.faithfulness import CONTROLS, MEASURES

    content = read_json(folder / SCORES)
    names = [name for name in MEASURES if name in next(iter(content["kinds"].values()))["values"]]
    yield Table(f"Faithfulness of {content['maps']} maps of {content['images']} images, percent (↓ lower is better)",
                ("maps", *(MEASURES[name].head for name in names)),
                [(kind if kind in CONTROLS else Kind(kind), *(f"{100 * found['values'][name]:.1f}" for name in names))
                 for kind, found in content["kinds"].items()], SECTION)
    random = content["randomised"]
    if random["similar"]:
        rows = [(f"({part} map)" if part in content["kinds"] else f"{part} and after" if number else part,
                 *(f"{value:.2f}" for value in pair)) for number, (part, pair) in enumerate(random["similar"].items())]
        yield Table(f"Similarity of the maps of {random['method']} with those of the trained network, {random['images']} images",
                    ("layers with random weights", "rank correlation", "SSIM"), rows, SECTION)


def shown(context: StepContext) -> Iterator[Curve | Table]:
    """The tables, and the mean curves of every kind of map and of the controls."""
    if not (context.folder / SCORES).exists():
        return
    from steps.parts.faithfulness import CONTROLS, MEASURES

    yield from tables(context.folder)
    content = read_json(context.folder / SCORES)
    for name, measure in MEASURES.items():
        x = content["road" if name in ("morf", "lerf") else "shares"]
        lines = [Line(x, found["curves"][name], kind, control=True) if kind in CONTROLS
                 else Line(x, found["curves"][name], kind=kind)
                 for kind, found in content["kinds"].items() if name in found["curves"]]
        if lines:
            yield Curve(measure.curve, f"share of the pixels {'inserted' if name == 'insertion' else 'removed'}",
                        "probability of the class, percent", lines, percent=True, section=SECTION)


def remarks(name: str, outcome: Outcome) -> list[Remark]:
    """Where maps are not better than controls, or do not depend on the network."""
    found = outcome.results.get(name, {}).get("verdicts", ())
    return [Remark(name, f"faithfulness {number}", f"The maps of {outcome.title(kind)} {text}")
            for number, (kind, text) in enumerate(found)]
