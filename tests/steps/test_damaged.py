"""Damaged files of a finished or interrupted step: an error that names the file and what to do, never a traceback."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from steps.parts.prototypes import Prototypes
from steps.parts.thresholds import read_chosen
from steps.runtime.context import StepContext
from steps.runtime.training import STATE, _load_state, _save_state
from tests.steps.test_maps import random_maps, stored
from wsss.errors import ArtifactError
from wsss.networks.weights import save_tensors

CENTRES = {"class_index": np.array([0, 0]), "is_background": np.array([False, True]), "center": np.ones((2, 4), np.float32),
           "kept": np.array([True, True])}


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_half_an_npz_and_one_without_an_array(tmp_path, kept):
    path = tmp_path / "make_lpcam" / "prototypes.npz"
    path.parent.mkdir()
    np.savez(path, **CENTRES)
    assert Prototypes(path, 1, torch.device("cpu")).summary()["foreground"] == 1
    content = path.read_bytes()
    path.write_bytes(content[:int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(ArtifactError, match="make_lpcam/prototypes.npz cannot be read .*Delete it"):
        Prototypes(path, 1, torch.device("cpu"))
    np.savez(path, **{name: array for name, array in CENTRES.items() if name != "kept"})
    with pytest.raises(ArtifactError, match="prototypes.npz cannot be read .*'kept'"):
        Prototypes(path, 1, torch.device("cpu"))


@pytest.mark.parametrize(("stated", "change", "message"), [
    ([0, 1], lambda packed: packed * np.float16(np.nan), "numbers that are not finite"),
    ([0, 1], lambda packed: packed + np.float16(1), "values above 1"),
    ([0, 1], lambda packed: -packed, "values below 0"),
    (None, lambda packed: packed + np.float16(1), "values above 1"),
    (None, lambda packed: packed - np.float16(2), "values below -1"),
    ([None, 1], lambda packed: packed + np.float16(1), "values above 1"),
    ([0, 1], lambda packed: packed[:, 1:], r"float16 \(2, 47\), expected float16 \(2, 48\)"),
    ([0, 1], lambda packed: packed[:1], r"float16 \(1, 48\), expected float16 \(2, 48\)"),
    ([0, 1], lambda packed: packed.astype(np.float32), r"float32 \(2, 48\), expected float16")])
def test_maps_that_are_not_what_the_index_says(tmp_path, stated, change, message):
    maps = stored(tmp_path / "make_cam", random_maps((6, 8)), (96, 128), **({} if stated is None else {"range": stated}))
    np.save(tmp_path / "make_cam/a.npy", change(maps.packed("a")))
    for read in (maps.packed, lambda image_id: maps.at(image_id, "strided")):
        with pytest.raises(ArtifactError, match=f"make_cam/a.npy holds {message}.* Delete it and run make_cam again"):
            read("a")


def test_maps_may_be_as_negative_as_their_index_says(tmp_path):
    for name, stated, values in (("signed", {}, -1), ("official", {"range": [None, 1]}, -7), ("any", {"range": [None, None]}, 7)):
        maps = stored(tmp_path / name, random_maps((6, 8)), (96, 128), **stated)
        np.save(tmp_path / name / "a.npy", np.full((2, 48), values, np.float16))
        assert (maps.packed("a") == values).all()


@pytest.mark.parametrize("content", [{}, [], None, 3, {"chosen": {}}, {"chosen": {"make_cam": {"threshold": 0.5}}},
                                     {"chosen": {"make_cam": {"threshold": "high", "source": "me"}}},
                                     {"chosen": {"make_cam": {"threshold": 7, "source": "me"}}}])
def test_a_file_without_the_threshold(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="scores.json holds no threshold of the make_cam maps, expected one in .* Delete it"):
        read_chosen(path, "make_cam")
    with pytest.raises(ArtifactError, match="scores.json holds no threshold, expected"):
        read_chosen(path)
    chosen = {"threshold": 0.3, "source": "best on val", "val_miou": [0.1]}
    (tmp_path / "threshold.json").write_text(json.dumps(chosen))
    (tmp_path / "scores.json").write_text(json.dumps({"chosen": {"make_lpcam": chosen}}))
    assert read_chosen(tmp_path / "threshold.json") == read_chosen(tmp_path / "scores.json", "make_lpcam") == chosen


@pytest.mark.parametrize(("tensors", "facts"), [
    ({}, {"step": 1, "log": []}), ({"module/weight": torch.zeros(9, 9)}, {"step": 1, "log": []}), (None, {}), (None, {"step": 1}),
    ({"optimizer/a/b/c": torch.zeros(1)}, {"step": 1, "log": []}), ({"optimizer/x/step": torch.zeros(1)}, {"step": 1, "log": []})])
def test_a_state_of_something_else(tmp_path, tensors, facts):
    module = torch.nn.Linear(2, 3)
    if tensors is None:
        tensors = {f"module/{name}": value for name, value in module.state_dict().items()}
    save_tensors(tmp_path / STATE, tensors, facts)
    context = StepContext("train_cam", None, None, {}, tmp_path)
    with pytest.raises(ArtifactError, match="state.safetensors does not fit the network .*Delete it to train again from the start"):
        _load_state(context, module, torch.optim.SGD(module.parameters(), lr=1.0), total=2)


def test_a_state_with_a_changed_bit_is_not_continued(tmp_path):
    """Else the training would end with other weights."""
    module = torch.nn.Linear(2, 3)
    context = StepContext("train_cam", None, None, {}, tmp_path)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    _save_state(context, module, optimizer, 1, SimpleNamespace(lines=[{"loss": 0.1}], write=lambda: None))
    assert _load_state(context, module, optimizer, total=2) == (1, [{"loss": 0.1}])
    whole = (tmp_path / STATE).read_bytes()
    for place in (len(whole) - 1, whole.index(b"0.1") + 2):   # a weight, the log
        (tmp_path / STATE).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        with pytest.raises(ArtifactError, match="its checksum differs.* the same command trains again from the start") as caught:
            _load_state(context, module, optimizer, total=2)
        assert caught.value.damaged == tmp_path / STATE
