"""The identity of a step's result: everything that its bytes depend on, and nothing else.

An identity is a plain dictionary, kept in the manifest so that a difference can be told by its key; its hash is the
fingerprint. Workers, device, threads and logging do not count; precision does. The list of an "images" step does not
count either: its artifacts are made one by one, each with a digest of its image and its labels in the journal, so a
longer list only means more of them.
"""

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from pipeline.config import settings_of
from pipeline.lists import Lists, chooses_pair
from pipeline.order import BY_NAME, irn_backbone
from steps.networks import weights_digest
from wsss.data.dataset import Dataset

DIGEST = re.compile("[0-9a-f]{32,}")
NOT_RESULTS = {"split", "prototype_split", "checkpoint_steps"}   # lists count by their content; saving changes nothing


def identities(config: Any, dataset: Dataset, lists: dict[str, Lists],
               recorded: Callable[[str], list[dict]] | None = None) -> dict[str, dict]:
    """The identity of every step of the experiment.

    `recorded` gives the identities that stand in the run folder for a step. With it no photograph and no mask is read:
    their digests are taken from the recorded identity that fits, "unknown" where there is none. Labels always count.
    """
    result: dict[str, dict] = {}
    for name in config.steps:
        olds = [None] if recorded is None else recorded(name) or [{}]
        found = [_identity(config, dataset, lists, result, name, old) for old in olds]
        result[name] = next((identity for identity, old in zip(found, olds) if identity == old), found[0])
    return result


def _identity(config: Any, dataset: Dataset, lists: dict[str, Lists], known: dict[str, dict], name: str,
              recorded: dict | None) -> dict[str, Any]:
    """The identity of one step; the digests of files from the identity `recorded`, or (None) from the files."""
    step, own = BY_NAME[name], settings_of(getattr(config, name))
    identity: dict[str, Any] = {
        "version": step.module.VERSION,
        name: {key: value for key, value in own.items() if key not in NOT_RESULTS},
        "reads": {source: _recorded_read(known, source, recorded) or _fingerprint_read(config, known, name, source)
                  for source in step.reads(config) if source in known and is_read(config, dataset, name, source)}}
    if "seed" in step.depends:
        identity["seed"] = config.seed
    if "precision" in step.depends:
        identity["precision"] = config.precision.value
    if "model" in step.depends:
        identity["model"] = _model(config, name)
    identity["data"] = {"classes": list(dataset.classes), "max_side": dataset.max_side}
    for purpose, ids in lists[name].items():
        if not ids or (name, purpose) == ("train_cam", "val") or (step.kind, purpose) == ("images", "ids"):
            continue
        identity["data"][f"labels of {purpose}"] = dataset.digest_of_labels(ids)
        of_files = {"images": dataset.digest_of_images}
        if purpose in ("scored", "val"):
            of_files["masks"] = dataset.digest_of_masks
        for kind, digest in of_files.items():
            key = f"{kind} of {purpose}"
            identity["data"][key] = digest(ids) if recorded is None else recorded.get("data", {}).get(key, "unknown")
    return identity


def is_read(config: Any, dataset: Dataset, name: str, source: str) -> bool:
    """Whether step `name` really reads `source` with this data set: no threshold is chosen where there are no masks."""
    return not (name == "cam_to_ir_label" and source == "eval_cam") or chooses_pair(config, dataset)


def fingerprint(identity: dict) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """What changed from one identity to another, as "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [line for name in names
                for line in differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)]
    if old == new:
        return []
    if key.startswith("reads."):
        return [f"{key.removeprefix('reads.')} changed"]
    if all(isinstance(value, str) and DIGEST.fullmatch(value) for value in (old, new)):   # the digits tell nothing
        return [f"{key.removeprefix('data.')} changed"]
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
