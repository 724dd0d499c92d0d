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

from pipeline.order import ALL_MAPS, BY_NAME, made_kinds
from pipeline.plan.lists import added_by, imported_file, reads_of, setup_of
from steps.step import IMAGES, TRAINING, Lists
from wsss.data.dataset import Dataset
from wsss.files import user_path
from wsss.networks.facts import file_sha256

DIGEST = re.compile("[0-9a-f]{32,}")
IMPORTED = "imported files"   # key of the identity of an imported result: the digest of its files


def identities(config: Any, dataset: Dataset, lists: dict[str, Lists],
               recorded: Callable[[str], list[dict]] | None = None, imported: Mapping[str, str] | None = None) -> dict[str, dict]:
    """The identity of every step of the experiment. `imported`: step -> digest of the files it was imported from.

    `recorded` returns the recorded identities of a step in the run folder. With it, no image or mask is read: their digests
    are those of the matching recorded identity, or "unknown" if there is none. Labels are always compared.
    """
    result: dict[str, dict] = {}
    for name in config.steps:
        digest = file_sha256(user_path(file)) if (file := imported_file(config, name)) else (imported or {}).get(name)
        if digest:
            result[name] = imported_identity(dataset, name, digest)
            continue
        olds = [None] if recorded is None else recorded(name) or [{}]
        found = [_identity(config, dataset, lists, result, name, old) for old in olds]
        result[name] = next((identity for identity, old in zip(found, olds) if identity == old), found[0])
    return result


def imported_identity(dataset: Dataset, name: str, digest: str) -> dict[str, Any]:
    """The identity of a step that is imported from files with this digest; it does not depend on settings."""
    frame = {} if BY_NAME[name].KIND == TRAINING else frame_of(dataset)
    return {IMPORTED: digest, "data": {"classes": list(dataset.classes), **frame}}


def _identity(config: Any, dataset: Dataset, lists: dict[str, Lists], known: dict[str, dict], name: str,
              recorded: dict | None) -> dict[str, Any]:
    """The identity of one step. Digests of files come from `recorded`, or from the files if it is None."""
    reads = reads_of(config, dataset, lists, name)
    row, setup = BY_NAME[name], setup_of(config, dataset, name, reads, lists=lists[name])
    identity: dict[str, Any] = {"version": row.VERSION, **row.identity(setup)}
    for key in {"split", *row.LOG_ONLY} & identity[name].keys():
        del identity[name][key]   # lists are identified by their content
    identity["reads"] = {
        source: _recorded_read(known, source, recorded) or fingerprint(BY_NAME[source].seen_by(source, known[source], setup))
        for names in reads.values() for source in names if source in known}
    for source in {source for role, names in reads.items() for source in names if row.reads[role] == ALL_MAPS}:
        added = added_by(config, dataset, source) if IMPORTED not in known.get(source, {}) else {}
        identity["reads"] |= {kind: fingerprint(added[folder]) for kind, folder in made_kinds(config, source).items()
                              if folder in added}
    identity["data"] = {"classes": list(dataset.classes), **frame_of(dataset)}
    for purpose, ids in lists[name].items():
        if not ids or purpose == "log" or (row.KIND, purpose) == (IMAGES, "ids"):
            continue
        identity["data"][f"labels of {purpose}"] = dataset.digest_of_labels(ids)
        for kind in ("images", *row.TRUTH.split(" or ")) if purpose in ("scored", "truth", "val") else ("images",):
            key = f"{kind} of {purpose}"
            digest = getattr(dataset, f"digest_of_{kind}")
            identity["data"][key] = digest(ids) if recorded is None else recorded.get("data", {}).get(key, "unknown")
        if any(image_id in setup.dataset.corrections for image_id in ids):
            key = f"corrected masks of {purpose}"
            identity["data"][key] = (setup.dataset.digest_of_corrections(ids) if recorded is None
                                     else recorded.get("data", {}).get(key, "unknown"))
    return identity


def frame_of(dataset: Dataset) -> dict[str, Any]:
    """The image size that the networks use, and the values that are black and white for them."""
    return ({"max_side": dataset.max_side} | ({"min_side": dataset.min_side} if dataset.min_side else {})
            | ({"range": list(dataset.levels)} if dataset.levels else {}))


def fingerprint(identity: dict) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The differences of two identities, as "key: old -> new"."""
    if not key and (IMPORTED in old) != (IMPORTED in new):
        return ["now imported" if IMPORTED in new else "no longer imported"]
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
    return [f"{key.removesuffix('.method')}: {as_set(old)} -> {as_set(new)}"]   # cam.method is set by cam=NAME


def as_set(value: Any) -> Any:
    """A value as it is written on the command line: null, true, false."""
    return json.dumps(value) if value is None or isinstance(value, bool) else value


def _recorded_read(known: dict, source: str, recorded: dict | None) -> str | None:
    """The fingerprint of a deleted step as its reader recorded it; None if the digests of `source` are known."""
    unknown = "unknown" in known[source]["data"].values()
    return (recorded or {}).get("reads", {}).get(source) if unknown else None
