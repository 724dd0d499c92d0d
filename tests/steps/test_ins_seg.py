"""The file of instances of an image: written small and always the same, and refused where it cannot be right."""

import json

import numpy as np
import pytest

from steps.eval_ins_seg import reader as read_scores
from steps.parts.instances import read_instances
from steps.runtime.artifacts import encode_arrays, write_arrays
from wsss.errors import ArtifactError
from wsss.files import write_bytes

SIZE = [6, 8]


def arrays(**changes):
    """Two instances, of the classes 1 and 0 of three."""
    label = np.zeros(SIZE, np.uint8)
    label[1:3, 1:4], label[4, 2:7] = 1, 2
    return {"score": np.array([0.75, 0], np.float32), "class": np.array([1, 0]), "label": label, **changes}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "make_ins_seg_labels/a.npz"
    write_bytes(path, encode_arrays(**arrays()))
    found = read_instances(path, SIZE, 3)
    assert found.score.tolist() == [0.75, 0] and found.classes.tolist() == [1, 0]
    assert found.masks().sum(axis=(1, 2)).tolist() == [6, 5]
    before = path.read_bytes()
    write_bytes(path, encode_arrays(**arrays()))
    assert path.read_bytes() == before
    large = arrays(label=np.kron(arrays()["label"], np.ones((60, 60), np.uint8)))   # 360 x 480
    assert len(encode_arrays(**large)) < 3000 < write_arrays(path, **large).stat().st_size
    nothing = {"score": np.zeros(0, np.float32), "class": np.zeros(0, np.int64), "label": np.zeros(SIZE, np.uint8)}
    write_bytes(path, encode_arrays(**nothing))
    assert len(read_instances(path, SIZE, 3).score) == 0


@pytest.mark.parametrize("changes", [
    {"score": np.array([0.75, 1.5], np.float32)}, {"score": np.array([0.75, -0.5], np.float32)}, {"score": np.array([0.75, 0.5])},
    {"score": np.array([0.75], np.float32)}, {"class": np.array([1, 3])}, {"class": np.array([1, -1])}, {"class": np.array([1.0, 0])},
    {"class": np.array([[1, 0]])}, {"label": np.zeros(SIZE, np.uint8)}, {"label": arrays()["label"] + np.uint8(1)},
    {"label": arrays()["label"].astype(np.int64)}, {"label": arrays()["label"][:5]}, {"label": arrays()["label"].T}])
def test_instances_that_cannot_be(tmp_path, changes):
    path = write_arrays(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(ArtifactError, match=r"a.npz does not hold instances of an image of \(6, 8\) with 3 classes. Delete it; the same") as error:
        read_instances(path, SIZE, 3)
    assert error.value.damaged == path


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", None])
def test_a_file_that_is_none(tmp_path, content):
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="a.npz cannot be read"):
        read_instances(path, SIZE, 3)


def test_numbers_that_are_not_finite_and_arrays_that_lack(tmp_path):
    path = write_arrays(tmp_path / "a.npz", **arrays(score=np.array([np.nan, 0], np.float32)))
    with pytest.raises(ArtifactError, match="a.npz cannot be read .*score is not finite"):
        read_instances(path, SIZE, 3)
    with pytest.raises(ArtifactError, match="no array 'label'"):
        read_instances(write_arrays(path, score=arrays()["score"], **{"class": arrays()["class"]}), SIZE, 3)


def test_scores_that_lack_something(tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps({"ap": 0.5}))
    with pytest.raises(ArtifactError, match="scores.json does not hold kind, ap, iou, coco_style, objects"):
        read_scores(tmp_path, 3)
