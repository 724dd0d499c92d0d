"""The identity of a step's result: everything that its bytes depend on, and nothing else.

An identity is a plain dictionary, kept in the manifest so that a difference can be told by its key; its hash is the
fingerprint. Workers, device, threads and logging do not count; precision does. The list of an "images" step does not
count either: its artifacts are made one by one, each with a digest of its image and its labels in the journal, so a
longer list only means more of them.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.order import BY_NAME, irn_backbone
from pipeline.plan.lists import Lists, chooses_pair, masks_to_choose_by
from steps.make_lpcam import CLUSTERING
from steps.parts.imported_prototypes import digest_of_imported
from steps.runtime.context import settings_of
from steps.runtime.model import weights_digest
from wsss.data.dataset import Dataset
from wsss.files import user_path
from wsss.networks.facts import file_sha256

DIGEST = re.compile("[0-9a-f]{32,}")
# Lists count by their content; saving and measuring change nothing. How a batch is cut (accumulate) changes rounding, as the
# number of processes does, which cuts it too: neither counts, so a training that lacked memory goes on in smaller parts.
UNFINGERPRINTED = {"split", "prototype_split", "checkpoint_steps", "max_val_images", "val_epochs", "accumulate"}


def identities(config: Any, dataset: Dataset, lists: dict[str, Lists],
               recorded: Callable[[str], list[dict]] | None = None, imported: Mapping[str, str] | None = None) -> dict[str, dict]:
    """The identity of every step of the experiment. `imported`: digests of the files that steps were imported from, by step.

    `recorded` gives the identities that stand in the run folder for a step. With it no image and no mask is read:
    their digests are taken from the recorded identity that fits, "unknown" where there is none. Labels always count.
    """
    result: dict[str, dict] = {}
    for name in config.steps:
        digest = file_sha256(user_path(file)) if (file := config.model.imported(name)) else (imported or {}).get(name)
        if digest:
            result[name] = imported_identity(dataset, name, digest)
            continue
        olds = [None] if recorded is None else recorded(name) or [{}]
        found = [_identity(config, dataset, lists, result, name, old) for old in olds]
        result[name] = next((identity for identity, old in zip(found, olds) if identity == old), found[0])
    return result


def imported_identity(dataset: Dataset, name: str, digest: str) -> dict[str, Any]:
    """The identity of a step that is taken from files with this digest instead of being done: no setting counts."""
    frame = {} if BY_NAME[name].kind == "training" else frame_of(dataset)
    return {"imported": digest, "data": {"classes": list(dataset.classes), **frame}}


def _identity(config: Any, dataset: Dataset, lists: dict[str, Lists], known: dict[str, dict], name: str,
              recorded: dict | None) -> dict[str, Any]:
    """The identity of one step; the digests of files from the identity `recorded`, or (None) from the files."""
    step, given = BY_NAME[name], name == "make_lpcam" and config.make_lpcam.prototypes
    identity: dict[str, Any] = {
        "version": step.module.VERSION,
        name: _settings(config, name),
        "reads": {source: _recorded_read(known, source, recorded) or _fingerprint_read(config, known, name, source)
                  for source in step.reads(config) if source in known and is_read(config, dataset, name, source)}}
    if "seed" in step.depends and not given:
        identity["seed"] = config.seed
    if "precision" in step.depends:
        identity["precision"] = config.precision.value
    if "model" in step.depends:
        identity["model"] = _model(config, name)
    identity["data"] = {"classes": list(dataset.classes), **frame_of(dataset)}
    for purpose, ids in lists[name].items():
        if not ids or (name, purpose) == ("train_cam", "val") or (step.kind, purpose) == ("images", "ids"):
            continue
        identity["data"][f"labels of {purpose}"] = dataset.digest_of_labels(ids)
        of_files = {"images": dataset.digest_of_images}
        if purpose in ("scored", "val"):
            kind = "instances" if "instances" in step.depends else "masks"
            of_files[kind] = getattr(dataset, f"digest_of_{kind}")
        for kind, digest in of_files.items():
            key = f"{kind} of {purpose}"
            identity["data"][key] = digest(ids) if recorded is None else recorded.get("data", {}).get(key, "unknown")
    return identity


def frame_of(dataset: Dataset) -> dict[str, int | None]:
    """The size in which the networks see the images."""
    return {"max_side": dataset.max_side} | ({"min_side": dataset.min_side} if dataset.min_side else {})


def _settings(config: Any, name: str) -> dict[str, Any]:
    """The settings that the results of a step depend on; of files their digest."""
    own = {key: value for key, value in settings_of(getattr(config, name)).items() if key not in UNFINGERPRINTED}
    if name == "make_lpcam" and (given := own.pop("prototypes")):
        own = {key: value for key, value in own.items() if key not in CLUSTERING} | {"prototypes": digest_of_imported(given)}
    return own


def is_read(config: Any, dataset: Dataset, name: str, source: str) -> bool:
    """Whether step `name` really reads `source` with this data set: no threshold is chosen where there are no masks, and IRN is
    for refiners that walk."""
    if (name, source) == ("cam_to_ir_label", "eval_cam"):
        return chooses_pair(config, dataset)
    if (name, source) == ("make_sem_seg_labels", "train_irn"):
        refiners = config.make_sem_seg_labels.refiners(bool(masks_to_choose_by(dataset)))
        return any(refiner.walks for refiner in refiners)
    return True


def unread_steps(config: Any, dataset: Dataset) -> dict[str, str]:
    """The steps that others of the experiment could read and none does, each with the reason."""
    unread: dict[str, str] = {}
    for name in reversed(config.steps):
        readers = [reader for reader in config.steps if name in BY_NAME[reader].reads(config)]
        reading = [reader for reader in readers if reader not in unread and is_read(config, dataset, reader, name)]
        if readers and not reading and BY_NAME[name].kind != "score":
            refiner = config.make_sem_seg_labels.refiners(bool(masks_to_choose_by(dataset)))[0].value
            unread[name] = f"no step reads it with make_sem_seg_labels.refiner={refiner}"
    return unread


def fingerprint(identity: dict) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """What changed from one identity to another, as "key: old -> new"."""
    if not key and ("imported" in old) != ("imported" in new):
        return ["taken from files now" if "imported" in new else "was taken from files"]
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [line for name in names
                for line in differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)]
    if old == new:
        return []
    # the digits of a digest tell nothing
    if all(value is None or isinstance(value, str) and DIGEST.fullmatch(value) for value in (old, new)):
        what = "no longer read" if new is None else "now read" if old is None else "changed"
        return [f"{key.removeprefix('reads.').removeprefix('data.')} {what}"]
    return [f"{key}: {old} -> {new}"]


def _fingerprint_read(config: Any, known: dict, reader: str, source: str) -> str:
    """The fingerprint of what `reader` takes from `source`: of eval_cam only the threshold chosen on val, so that a
    changed training mask or score changes no label."""
    if reader == "cam_to_ir_label" and source == "eval_cam":
        threshold = settings_of(config.eval_cam.threshold)[config.seed_maps.value]
        of_val = {key: value for key, value in known[source]["data"].items() if key.endswith(" of val")}
        return fingerprint({"version": known[source]["version"], "reads": known[source]["reads"], "threshold": threshold,
                            **of_val})
    return fingerprint(known[source])


def _recorded_read(known: dict, source: str, recorded: dict | None) -> str | None:
    """Of a step that is gone, and so has no recorded digests, what was read of it stands in its readers."""
    unknown = "unknown" in known[source]["data"].values()
    return (recorded or {}).get("reads", {}).get(source) if unknown else None


def _model(config: Any, name: str) -> dict[str, Any]:
    model = config.model
    identity = {"backbone": model.backbone.value}
    if name == "train_irn":
        identity["irn_backbone"] = irn_backbone(config)
        if identity["irn_backbone"] == "classifier":
            return identity
    if name == "train_irn" or model.starts_from_weights:
        identity["weights"] = weights_digest(model)
    return identity
