"""The ids of each step: by default exactly those that the later steps of the experiment read."""

from collections.abc import Collection, Iterable
from typing import Any

from pipeline.order import BY_NAME
from wsss.data.dataset import Dataset
from wsss.data.ids import union
from wsss.errors import ConfigError

Lists = dict[str, tuple[str, ...]]   # purpose -> ids


def derive_lists(config: Any, dataset: Dataset, imported: Collection[str] = ()) -> dict[str, Lists]:
    """The lists of every step of the experiment, by purpose (see `steps.runtime.context.StepContext.lists`).

    The lists depend on the steps of the experiment, not on the flags of this call, so that steps can be run in separate calls.
    Scoring lists are empty without masks; "val" is empty if nothing is chosen on it. A training that is imported from a file
    has no list; it and the `imported` steps read nothing.

    Raises ConfigError if an explicit list does not cover the ids that a later step reads.
    """
    lists: dict[str, Lists] = {}
    needed: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in BY_NAME}   # step -> reader -> ids
    for name in reversed(config.steps):
        if config.model.imported(name):
            lists[name] = {}
            continue
        lists[name] = _LISTS[name](config, dataset, needed[name])
        _check_cover(config, name, lists[name], needed[name])
        wanted = union(lists[name].values())
        for source in BY_NAME[name].reads(config) if name not in imported else ():
            needed[source][name] = wanted
    return {name: lists[name] for name in config.steps}


def masks_to_choose_by(dataset: Dataset) -> tuple[str, ...]:
    """The val ids if all of them have masks, else ()."""
    val = dataset.lists["val"]
    return val if val and dataset.has_masks(val) else ()


def chooses_pair(config: Any, dataset: Dataset) -> bool:
    """Whether cam_to_ir_label derives its confident pair from the threshold of eval_cam, and eval_cam has images."""
    return config.cam_to_ir_label.conf_fg is None and any(_eval_cam(config, dataset, {}).values())


def _split(dataset: Dataset, split: str | None, default: Iterable[str]) -> tuple[str, ...]:
    return tuple(default) if split is None else dataset.list_ids(split)


def _train_cam(config: Any, dataset: Dataset, needed: dict) -> Lists:
    return {"ids": _split(dataset, config.train_cam.split, dataset.lists["train"]), "val": dataset.lists["val"]}


def _make_cam(config: Any, dataset: Dataset, needed: dict) -> Lists:
    return {"ids": _split(dataset, config.make_cam.split, union(needed.values()) or dataset.lists["train"])}


def _make_lpcam(config: Any, dataset: Dataset, needed: dict) -> Lists:
    return {"ids": _split(dataset, config.make_lpcam.split, union(needed.values()) or dataset.lists["train"]),
            "prototypes": () if config.make_lpcam.prototypes else
            _split(dataset, config.make_lpcam.prototype_split, dataset.lists["train"])}


def _eval_cam(config: Any, dataset: Dataset, needed: dict) -> Lists:
    threshold = config.eval_cam.threshold
    scored = _with_masks(dataset, config.eval_cam.split)
    if None not in (threshold.cam, threshold.lpcam_fg, threshold.lpcam):
        return {"scored": scored, "val": ()}
    val = masks_to_choose_by(dataset)
    _refuse_choosing_on_scored("eval_cam", scored, val, "eval_cam.threshold")
    return {"scored": scored, "val": val}


def _cam_to_ir_label(config: Any, dataset: Dataset, needed: dict) -> Lists:
    return {"ids": _split(dataset, config.cam_to_ir_label.split, union(needed.values()) or dataset.lists["train"])}


def _train_irn(config: Any, dataset: Dataset, needed: dict) -> Lists:
    return {"ids": _split(dataset, config.train_irn.split, dataset.lists["train"])}


def _make_sem_seg_labels(config: Any, dataset: Dataset, needed: dict) -> Lists:
    ids = _split(dataset, config.make_sem_seg_labels.split, union([dataset.lists["train"], *needed.values()]))
    val = masks_to_choose_by(dataset) if config.make_sem_seg_labels.chooses else ()
    scored = union(needed.values())
    _refuse_choosing_on_scored("eval_sem_seg", scored, val, "make_sem_seg_labels.bg_threshold")
    return {"ids": ids, "val": val}


def _make_ins_seg_labels(config: Any, dataset: Dataset, needed: dict) -> Lists:
    return {"ids": _split(dataset, config.make_ins_seg_labels.split, union([dataset.lists["train"], *needed.values()]))}


def _eval_ins_seg(config: Any, dataset: Dataset, needed: dict) -> Lists:
    """The list to score; () if it is the default list and has no instances. Raises ConfigError if some are missing."""
    split = config.eval_ins_seg.split
    ids = _split(dataset, split, dataset.lists["train"])
    known = sum(map(dataset.has_instances, ids))
    if known < len(ids) and (known or split is not None):
        raise ConfigError(f"eval_ins_seg scores {len(ids)} images, but only {known} have instances in {dataset.root}. "
                          "Add the others, choose another eval_ins_seg.split, or take eval_ins_seg out of steps")
    return {"scored": ids if known else ()}


def _eval_sem_seg(config: Any, dataset: Dataset, needed: dict) -> Lists:
    return {"scored": _with_masks(dataset, config.eval_sem_seg.split)}


_LISTS = {"train_cam": _train_cam, "make_cam": _make_cam, "make_lpcam": _make_lpcam, "eval_cam": _eval_cam,
          "cam_to_ir_label": _cam_to_ir_label, "train_irn": _train_irn, "make_sem_seg_labels": _make_sem_seg_labels,
          "eval_sem_seg": _eval_sem_seg, "make_ins_seg_labels": _make_ins_seg_labels, "eval_ins_seg": _eval_ins_seg}


def _with_masks(dataset: Dataset, split: str | None) -> tuple[str, ...]:
    """The list to score; () if it is the default list and has no masks. Raises ConfigError if an explicit list lacks some."""
    ids = _split(dataset, split, dataset.lists["train"])
    if dataset.has_masks(ids):
        return ids
    if split is not None:
        raise ConfigError(f"split={split!r} is to be scored, but not all of its {len(ids)} images have masks in "
                          f"{dataset.root}. Add the masks or choose another list")
    return ()


def _refuse_choosing_on_scored(step: str, scored: tuple[str, ...], val: tuple[str, ...], key: str) -> None:
    """Raise ConfigError if a threshold is chosen on images that are also scored with it."""
    both = set(scored) & set(val)
    if both:
        raise ConfigError(f"{step}.split contains {len(both)} images of the list val, on which {key} is chosen. Set {key} to "
                          "numbers, or score a list without them")


def _check_cover(config: Any, name: str, lists: Lists, readers: dict[str, tuple[str, ...]]) -> None:
    """Raise ConfigError if an explicit list does not cover the ids that a later step reads."""
    if "ids" not in lists or BY_NAME[name].kind != "images":
        return
    have = set(lists["ids"])
    for reader, wanted in reversed(readers.items()):
        missing = [image_id for image_id in wanted if image_id not in have]
        if missing:
            raise ConfigError(f"{name}.split={getattr(config, name).split!r} covers {len(wanted) - len(missing)} of the "
                              f"{len(wanted)} ids that {reader} reads (first missing: {missing[0]!r}). Set {name}.split"
                              f"=null to make the ids of all its readers, or choose a list for {reader} that it covers")
