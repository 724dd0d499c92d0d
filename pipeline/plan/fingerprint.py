"""The identity of a step's result: everything that its bytes depend on, and nothing else.

An identity is a plain dictionary, stored in the manifest so that a difference can be reported by its key. Its hash is the
fingerprint. It includes precision, but not workers, device, threads and logging. It excludes the list of an "images" step:
each artifact is made separately and has the digest of its image and labels in the journal, so a longer list only adds
artifacts.
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
# Lists are identified by their content; saving and measuring do not change results. Splitting a batch (accumulate, number of
# processes) only changes rounding. It is excluded, so that a training that ran out of memory can continue in smaller parts.
UNFINGERPRINTED = {"split", "prototype_split", "checkpoint_steps", "max_val_images", "val_epochs", "accumulate"}


def identities(config: Any, dataset: Dataset, lists: dict[str, Lists],
               recorded: Callable[[str], list[dict]] | None = None, imported: Mapping[str, str] | None = None) -> dict[str, dict]:
    """The identity of every step of the experiment. `imported`: step -> digest of the files it was imported from.

    `recorded` returns the recorded identities of a step in the run folder. With it, no image or mask is read: their digests
    are those of the matching recorded identity, or "unknown" if there is none. Labels are always compared.
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
    """The identity of a step that is imported from files with this digest; it does not depend on settings."""
    frame = {} if BY_NAME[name].kind == "training" else frame_of(dataset)
    return {"imported": digest, "data": {"classes": list(dataset.classes), **frame}}


def _identity(config: Any, dataset: Dataset, lists: dict[str, Lists], known: dict[str, dict], name: str,
              recorded: dict | None) -> dict[str, Any]:
    """The identity of one step. Digests of files come from `recorded`, or from the files if it is None."""
    step, imported_prototypes = BY_NAME[name], name == "make_lpcam" and config.make_lpcam.prototypes
    identity: dict[str, Any] = {
        "version": step.module.VERSION,
        name: _settings(config, name),
        "reads": {source: _recorded_read(known, source, recorded) or _fingerprint_read(config, known, name, source)
                  for source in step.reads(config) if source in known and is_read(config, dataset, name, source)}}
    if "seed" in step.depends and not imported_prototypes:
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
    """The image size that the networks use."""
    return {"max_side": dataset.max_side} | ({"min_side": dataset.min_side} if dataset.min_side else {})


def _settings(config: Any, name: str) -> dict[str, Any]:
    """The settings that the results of a step depend on; files are replaced by their digest."""
    own = {key: value for key, value in settings_of(getattr(config, name)).items() if key not in UNFINGERPRINTED}
    if name == "make_lpcam" and (file := own.pop("prototypes")):
        own = {key: value for key, value in own.items() if key not in CLUSTERING} | {"prototypes": digest_of_imported(file)}
    return own


def is_read(config: Any, dataset: Dataset, name: str, source: str) -> bool:
    """Whether step `name` reads `source` with this data set: no threshold is chosen without masks, and only refiners with a
    random walk use IRN."""
    if (name, source) == ("cam_to_ir_label", "eval_cam"):
        return chooses_pair(config, dataset)
    if (name, source) == ("make_sem_seg_labels", "train_irn"):
        refiners = config.make_sem_seg_labels.refiners(bool(masks_to_choose_by(dataset)))
        return any(refiner.walks for refiner in refiners)
    return True


def unread_steps(config: Any, dataset: Dataset) -> dict[str, str]:
    """The steps that no step of the experiment reads with these settings, each with the reason."""
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
    """The differences of two identities, as "key: old -> new"."""
    if not key and ("imported" in old) != ("imported" in new):
        return ["now imported" if "imported" in new else "no longer imported"]
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [line for name in names
                for line in differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)]
    if old == new:
        return []
    # digests are not shown
    if all(value is None or isinstance(value, str) and DIGEST.fullmatch(value) for value in (old, new)):
        what = "no longer read" if new is None else "now read" if old is None else "changed"
        return [f"{key.removeprefix('reads.').removeprefix('data.')} {what}"]
    return [f"{key}: {old} -> {new}"]


def _fingerprint_read(config: Any, known: dict, reader: str, source: str) -> str:
    """The fingerprint of what `reader` reads from `source`. For eval_cam this is only the threshold chosen on val, so that
    a changed training mask or score does not make labels stale."""
    if reader == "cam_to_ir_label" and source == "eval_cam":
        threshold = settings_of(config.eval_cam.threshold)[config.seed_maps.value]
        of_val = {key: value for key, value in known[source]["data"].items() if key.endswith(" of val")}
        return fingerprint({"version": known[source]["version"], "reads": known[source]["reads"], "threshold": threshold,
                            **of_val})
    return fingerprint(known[source])


def _recorded_read(known: dict, source: str, recorded: dict | None) -> str | None:
    """The fingerprint of a deleted step as its reader recorded it; None if the digests of `source` are known."""
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
