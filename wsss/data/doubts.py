"""What contradicts itself in a data set, told before any work: masks against image labels, labels that nothing can be learned
from, and copies of an image in train and val. Each doubt is one message: the cause, and what to do."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsss.data.checked import remembered
from wsss.data.dataset import Dataset
from wsss.data.duplicates import copies
from wsss.data.folder.masks import FileMasks
from wsss.data.images import read_mask
from wsss.data.messages import MAX_REPORTED, refuse
from wsss.errors import DataError
from wsss.palette import IGNORE

log = logging.getLogger(__name__)

MAX_IMAGES = 5000   # of more images, pixels of images and masks are only read by action=prepare
_TOLERATED = 0.1   # share of images whose mask may differ from the label: objects that are labelled but not drawn, or small
_AGREE = 0.9   # share of images that another order of the classes has to explain

Values = Mapping[str, Sequence[int]]   # id -> the values in its mask


@dataclass
class Doubts:
    """`failed`: what makes all work with the masks meaningless; `problems`: warnings; `contradicting`: ids whose mask and label
    differ."""

    failed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    contradicting: list[str] = field(default_factory=list)


def tell(dataset: Dataset, check: bool | Path, pixels: bool) -> None:
    """Log the doubts about a data set; with `pixels` those about its masks and copies, too, which are read once (`remembered`).

    Raises DataError for masks that cannot be those of the labels.
    """
    doubts = doubts_of(dataset, check) if pixels else Doubts(problems=about_labels(dataset))
    for text in doubts.problems:
        _warn(dataset.name, text)
    refuse(f"masks of {dataset.root}", doubts.failed)


def _warn(name: str, message: str) -> None:
    log.warning("data set %s: %s", name, message)


def doubts_of(dataset: Dataset, check: bool | Path) -> Doubts:
    """All doubts about labels and masks, and about the images of a folder, whose lists are the user's."""
    doubts = Doubts(problems=about_labels(dataset))
    if dataset.read_from and (pairs := copies(dataset, check)):
        doubts.problems.append(_in_both_lists(pairs))
    if dataset.mask_files:
        numbers = dataset.mask_source is None or isinstance(dataset.mask_source, FileMasks)   # of files, whatever the classes
        depends = repr(getattr(dataset.mask_source, "table", {})) if numbers else repr(dataset.classes)
        found = remembered(check, dataset.root, dataset.mask_files, depends, lambda: _read(dataset))
        about_masks(dataset, found, doubts)
    return doubts


def _in_both_lists(pairs: Sequence[tuple[str, str, float]]) -> str:
    train, val, _ = pairs[0]
    named = ", ".join(f"{one} and {other}" for one, other, _ in pairs[1:MAX_REPORTED])
    more = f", {len(pairs) - MAX_REPORTED} more" * (len(pairs) > MAX_REPORTED)
    also = f" (also {named}{more})" if named else ""
    return (f"{train} of train and {val} of val look like copies of one image{also}: what is chosen on val then suits images "
            f"that were trained on. Move both to one list: with train.txt and val.txt, take {val} out of val.txt and write it in "
            "train.txt, or remove one image")


def _read(dataset: Dataset) -> dict[str, list[int]]:
    found, problems = {}, []
    for image_id, file in dataset.mask_files.items():
        try:
            mask = read_mask(dataset.root / file) if dataset.mask_source is None else dataset.mask_source.read(image_id)
            found[image_id] = np.flatnonzero(np.bincount(mask.reshape(-1), minlength=IGNORE + 1)).tolist()
        except DataError as error:
            problems.append(str(error))
    refuse(f"masks of {dataset.root}", problems)
    return found


# Labels.

def about_labels(dataset: Dataset) -> list[str]:
    """What cannot be learned from the labels of the list train, and a list val that nothing can be chosen on."""
    labels = {name: [set(dataset.labels[i]) for i in dataset.lists[name]] for name in ("train", "val")}
    train, count = labels["train"], Counter(index for present in labels["train"] for index in present)
    problems = _always_together(dataset, train, count)
    for index, name in enumerate(dataset.classes):
        in_val = sum(index in present for present in labels["val"])
        if count[index] == len(train) > 1:
            problems.append(f"class {name!r} is on each of the {len(train)} training images, so no map can tell it from its "
                            "surroundings: add images without it, with an empty label")
        elif count[index] == 0 and in_val:
            problems.append(f"class {name!r} has no training image, but {in_val} of val: it cannot be learned. Move some to "
                            "train, with lists of your own in train.txt and val.txt")
    if labels["val"] and not any(labels["val"]):
        problems.append(f"none of the {len(labels['val'])} images of val has a class, so nothing can be chosen on them: write "
                        "val.txt with images of every class")
    return problems


def _always_together(dataset: Dataset, train: Sequence[set[int]], count: Counter[int]) -> list[str]:
    pairs = Counter((a, b) for present in train for a in present for b in present if a < b)
    names = dataset.classes
    problems = [f"classes {names[a]!r} and {names[b]!r} are on the same {both} training images, so they cannot be told apart: "
                "add images of one alone" for (a, b), both in pairs.items() if 1 < both == count[a] == count[b] < len(train)]
    return problems


# Masks.

def about_masks(dataset: Dataset, found: Values, doubts: Doubts) -> None:
    """Add the doubts about the masks, of which `found` has the values."""
    labels = {i: set(dataset.labels[i]) for i in found if i not in dataset.unlabelled}
    drawn = {i: {value - 1 for value in found[i] if 0 < value < IGNORE} for i in labels}
    doubts.contradicting = [i for i in labels if labels[i] != drawn[i]]
    if _beyond(dataset, labels, found, doubts) or _nothing_drawn(dataset, labels, drawn, found, doubts):
        return
    if len(doubts.contradicting) <= _TOLERATED * len(labels):
        _absent(dataset, labels, drawn, doubts)
        return
    if order := _other_order(len(dataset.classes), labels, drawn):
        doubts.problems.append(_in_order(dataset, order))
        return
    first = doubts.contradicting[0]
    doubts.problems.append(f"the masks of {len(doubts.contradicting)} of {len(labels)} images do not hold the classes of their "
                           f"labels, for example {first}: labelled {_names(dataset, labels[first])}, its mask has "
                           f"{_names(dataset, drawn[first])}. Correct the labels, the masks or the order of the class list")
    _absent(dataset, labels, drawn, doubts)


def _names(dataset: Dataset, classes: set[int]) -> str:
    return ", ".join(dataset.classes[index] for index in sorted(classes)) or "no class"


def _table(dataset: Dataset, values: Mapping[int, int]) -> str:
    """The lines of a table of numbers; `values`: class -> number in the masks."""
    lines = "\n    ".join(f"{dataset.classes[index]},{value}" for index, value in sorted(values.items()))
    kind = "" if dataset.read_from else "use data=folder, "
    return f"{kind}write a file with these lines and set data.colours=FILE:\n    background,0\n    {lines}"


def _beyond(dataset: Dataset, labels: Mapping[str, set[int]], found: Values, doubts: Doubts) -> bool:
    """Values that no class has, with the classes that they seem to be."""
    n_classes = len(dataset.classes)
    wrong = sorted({value for values in found.values() for value in values if n_classes < value < IGNORE})
    if not wrong:
        return False
    cause = (f"the masks hold the values {', '.join(map(str, wrong[:MAX_REPORTED]))}; expected 1 to {n_classes} for the "
             "classes, 0 for background and 255 for what is not scored")
    match = _matched(labels, {i: {value for value in found[i] if 0 < value < IGNORE} for i in labels}, range(n_classes))
    if match:
        doubts.failed.append(f"{cause}. By the labels, {_table(dataset, match)}")
    else:
        doubts.failed.append(f"{cause}. Complete the class list, or name the numbers in a table: data.colours=FILE")
    return True


def _nothing_drawn(dataset: Dataset, labels: Mapping[str, set[int]], drawn: Mapping[str, set[int]], found: Values,
                   doubts: Doubts) -> bool:
    """No mask holds any class although there are labelled images with masks."""
    labelled = [i for i in labels if labels[i]]
    if not labelled or any(drawn.values()):
        return False
    counts = Counter(index for i in labelled for index in labels[i])
    named = "; ".join(f"no mask holds class {dataset.classes[index]!r} though {count} images are labelled with it"
                      for index, count in sorted(counts.items())[:MAX_REPORTED])
    ignored = sum(IGNORE in found[i] for i in labelled)
    if not ignored:
        doubts.failed.append(f"{named}: all masks are background (0). Draw the classes, or remove the masks to run without "
                             "scores")
    elif len(dataset.classes) == 1:
        doubts.failed.append(f"{named}, and all their foreground is 255, which is not scored. If 255 is the class, "
                             f"{_table(dataset, {0: IGNORE})}")
    else:
        doubts.failed.append(f"{named}, and all their foreground is 255, which is not scored. Save class numbers, 1 to "
                             f"{len(dataset.classes)}, or remove the masks to run without scores")
    return True


def _absent(dataset: Dataset, labels: Mapping[str, set[int]], drawn: Mapping[str, set[int]], doubts: Doubts) -> None:
    labelled = Counter(index for present in labels.values() for index in present)
    present = {index for classes in drawn.values() for index in classes}
    for index in sorted(labelled.keys() - present):
        doubts.problems.append(f"no mask holds class {dataset.classes[index]!r} though {labelled[index]} images are labelled "
                               f"with it, so it has no scores: draw it as value {index + 1}, or correct the labels")


def _other_order(n_classes: int, labels: Mapping[str, set[int]], drawn: Mapping[str, set[int]]) -> dict[int, int] | None:
    """class -> mask value, if values other than those of the class list explain nearly all masks; 0: not drawn."""
    values = {i: {index + 1 for index in drawn[i]} for i in labels}
    shifted = {index: index for index in range(n_classes)}   # the first class is 0, as background
    if _explained(labels, values, shifted) >= _AGREE:
        return shifted
    return _matched(labels, values, range(n_classes))


def _matched(labels: Mapping[str, set[int]], values: Mapping[str, set[int]], classes: Sequence[int]) -> dict[int, int] | None:
    """class -> the value that is on its images, if each has another one and this explains nearly all masks."""
    with_class = {index: {i for i in labels if index in labels[i]} for index in classes}
    with_value: dict[int, set[str]] = {}
    for i, present in values.items():
        for value in present:
            with_value.setdefault(value, set()).add(i)
    match = {}
    for index, ids in with_class.items():
        if ids and with_value:
            match[index] = max(with_value, key=lambda value: len(ids & with_value[value]) / len(ids | with_value[value]))
    if len(set(match.values())) < len(match) or _explained(labels, values, match) < _AGREE:
        return None
    return match


def _explained(labels: Mapping[str, set[int]], values: Mapping[str, set[int]], order: Mapping[int, int]) -> float:
    """The share of the labelled images whose mask holds what `order` (class -> value) says of the label."""
    said = [{order[index] for index in labels[i] if index in order} - {0} == values[i] for i in labels if labels[i]]
    return sum(said) / max(len(said), 1)


def _in_order(dataset: Dataset, order: Mapping[int, int]) -> str:
    shifts = {value - index for index, value in order.items()}
    if order.get(0) == 0:
        return (f"the mask values are shifted by one: {dataset.classes[0]!r} is 0, as background is, and the others follow. Save "
                "the masks again with 1 for the first class: background cannot be told from it")
    if len(shifts) == 1:
        return f"the mask values are shifted: {dataset.classes[0]!r} is {order[0]}. To read them so, {_table(dataset, order)}"
    by_value = sorted(order, key=lambda index: order[index])
    pairs = ", ".join(f"{order[index]} is {dataset.classes[index]}" for index in by_value)
    shown = ", ".join(dataset.classes[:MAX_REPORTED]) + ", ..." * (len(dataset.classes) > MAX_REPORTED)
    text = f"the masks do not have the classes in the order {shown}. By the labels, {pairs}"
    own = bool(dataset.read_from)   # a folder has a class list of its own
    if sorted(order.values()) == list(range(1, len(order) + 1)) and (len(order) == len(dataset.classes) or not own):
        return (f"{text}. {'Write' if own else 'Use data=folder, and write'} classes.txt with a class per line in the order "
                f"{', '.join(dataset.classes[i] for i in by_value)}")
    return f"{text}. To read them so, {_table(dataset, order)}"
