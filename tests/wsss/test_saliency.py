"""Saliency maps of a data set, and EDAM's background by them against a plain form of `infer_cls.py`, pixel by pixel."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import compose, typed
from wsss.data.dataset import Dataset
from wsss.data.saliency import check_saliency, digest_of_saliency, find_saliency, read_saliency
from wsss.data.shapes import draw_saliency, make_shapes
from wsss.errors import ArgumentError, ConfigError, DataError
from wsss.refinement.crf import DenseCRF
from wsss.refiners.method import SeedImage
from wsss.refiners.saliency import Saliency

KERNELS = {"gaussian_sxy": 3.0, "gaussian_compat": 3.0, "bilateral_sxy": 80.0, "bilateral_srgb": 13.0, "bilateral_compat": 10.0}
SIZE = 12, 9


def method(**changed):
    return Saliency(**{"theta": 20.0, "alpha": 1e-6, "beta": 0.99999, "iterations": 0, **KERNELS, **changed})


def case(seed=0, classes=2):
    draw = torch.Generator().manual_seed(seed)
    maps = torch.rand(1, classes, *SIZE, generator=draw)
    maps[:, :, :3] = 0.0                       # below alpha
    maps[0, 1, 5, 5] = 1.0                     # above beta
    saliency = torch.randint(0, 60, SIZE, generator=draw).to(torch.uint8)
    saliency[:2] = torch.tensor([20, 21], dtype=torch.uint8)[:, None]
    saliency[5, 5] = 0
    image = torch.randint(0, 256, (*SIZE, 3), generator=draw).to(torch.uint8)
    return SeedImage(lambda: maps[0], None, lambda: image, "a", saliency=lambda: saliency), torch.cat([torch.full((1, 1, *SIZE), 0.3), maps], 1)


def plain(saliency, found, theta=0.2, alpha=1e-6, beta=0.99999):
    """infer_cls.py, --out_cam_pred: `found` (K + 1, H, W), background first -> the mask."""
    background = np.where(saliency <= theta * 100, 1, 0)
    tensor = np.where(found < alpha, -2, found)
    tensor = np.where(tensor > beta, 2, tensor)
    tensor[0] = background
    return np.argmax(tensor, axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_masks_are_those_of_the_official_code(seed):
    image, scores = case(seed)
    mask = method().scores(image, scores)[0].argmax(0)
    wanted = plain(image.saliency.numpy(), scores[0].numpy())
    assert np.array_equal(mask, wanted) and set(np.unique(wanted)) == {0, 1, 2}
    assert wanted[5, 5] == 2 and image.saliency[5, 5] == 0      # certain classes are kept where nothing stands out
    assert (wanted[:3] == 0).all()                              # and where something does, no class is made of nothing


def test_with_the_crf_the_saliency_counts_and_the_crf_is_the_official_one():
    """infer_cls.py, _crf_with_alpha; then what `--sal_path` would do if the result were used."""
    image, scores = case()
    maps = scores[0, 1:]
    start = torch.cat([(1 - maps.amax(0, keepdim=True)) ** 1, maps]).clamp(1e-5, 1)
    probabilities = DenseCRF(image.image, **KERNELS).inference(-start.log(), 3).numpy()
    mask = method(iterations=3).scores(image, scores)[0].argmax(0)
    assert np.array_equal(mask, plain(image.saliency.numpy(), probabilities))
    assert not np.array_equal(mask, probabilities.argmax(0))    # the official result, in which the saliency is ignored
    other = SeedImage(lambda: maps, None, lambda: image.image, "a", saliency=lambda: 255 - image.saliency)
    assert not np.array_equal(mask, method(iterations=3).scores(other, scores)[0].argmax(0))


def test_the_background_threshold_does_not_matter_and_labellings_are_apart():
    image, scores = case()
    both = torch.cat([scores, case(1)[1]])
    both[1, 0] = 0.9
    for iterations in (0, 2):
        found = method(iterations=iterations).scores(image, both)
        torch.testing.assert_close(found[1:], method(iterations=iterations).scores(image, both[1:]), rtol=0, atol=1e-6)
        both[:, 0] = 0.1
        assert torch.equal(found, method(iterations=iterations).scores(image, both))


def test_the_files_of_conf():
    plain_one, crf = (typed(compose([f"refiner={name}"])).refiner for name in ("saliency", "saliency_crf"))
    assert plain_one == method() and crf == method(iterations=3) and crf.threshold == 0.5 and crf.own_files


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("theta", 256.0, "a grey level from 0 to 255"), ("alpha", -0.1, r"a number in \[0, 1\]"), ("beta", 0.0, "a number from alpha=1e-06 to 1"),
    ("iterations", -1, "0 .no CRF. or more"), ("bilateral_srgb", 0.0, "above 0")])
def test_impossible_settings(key, value, expected):
    with pytest.raises(ConfigError, match=rf"refiner.{key}={value} is not possible: expected {expected}"):
        method(**{key: value})


# The maps of a data set.

@pytest.fixture
def dataset(tmp_path):
    """Two images; the third has no class."""
    for name in "abc":
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{name}.png")
    files = {name: f"{name}.png" for name in "abc"}
    return Dataset("small", tmp_path, ("cat",), {"train": ("a", "b", "c"), "val": (), "all": ("a", "b", "c")},
                   {"a": (0,), "b": (0,), "c": ()}, files)


def write(folder, name, array):
    folder.mkdir(exist_ok=True)
    Image.fromarray(array).save(folder / name)


def test_they_are_found_read_and_count_by_content(dataset, tmp_path):
    folder, grey = tmp_path / "maps", np.arange(108, dtype=np.uint8).reshape(SIZE)
    for name in ("b.png", "a.png", "of_another_image.png"):
        write(folder, name, grey)
    found = replace(dataset, saliency=find_saliency(folder, dataset))
    assert list(found.saliency) == ["a", "b"]
    check_saliency(found, ["a", "b"])
    method().check(found, ["a", "b", "c"])              # an image without a class needs none
    assert np.array_equal(read_saliency(found, "a", SIZE), grey) and read_saliency(found, "a", (6, 5)).shape == (6, 5)
    before = method().files(found)
    write(folder, "b.png", grey // 2)
    assert method().files(found) == {"saliency": digest_of_saliency(found)} != before
    (folder / "a.png").write_bytes((folder / "b.png").read_bytes()[:45])
    with pytest.raises(DataError, match="saliency map .*a.png is truncated or damaged"):
        read_saliency(found, "a", SIZE)


def test_what_is_wrong_with_them_is_said_before_any_work(dataset, tmp_path):
    with pytest.raises(DataError, match="data.saliency=.*/maps cannot be read"):
        find_saliency(tmp_path / "maps", dataset)
    write(tmp_path / "maps", "d.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(DataError, match="has no map of any image of data set small; expected ID.png, such as a.png"):
        find_saliency(tmp_path / "maps", dataset)
    with pytest.raises(DataError, match="refiner=saliency reads saliency maps, and data set small has none: set data.saliency=DIR"):
        method().check(dataset, ["a"])
    write(tmp_path / "maps", "a.png", np.zeros((*SIZE, 3), np.uint8))
    write(tmp_path / "maps", "c.png", np.zeros((5, 5), np.uint8))
    found = replace(dataset, saliency=find_saliency(tmp_path / "maps", dataset))
    with pytest.raises(DataError, match="3 problems") as error:
        check_saliency(found, ["a", "b", "c"])
    assert [line.strip("- ") for line in str(error.value).splitlines()[1:]] == [
        "a.png is PNG RGB with 8 bits, expected an 8-bit grey PNG", "no saliency map of 'b'; add b.png",
        "c.png is 5 high and 5 wide but its image is 12 high and 9 wide as shown; save it in that size"]
    with pytest.raises(ArgumentError, match="there is no saliency map of 'a'"):
        SeedImage(None, None, None, "a").saliency  # noqa: B018


def test_the_embedded_set_draws_them_of_its_masks(tmp_path):
    from wsss.data.folder import open_folder

    data = open_folder(make_shapes(tmp_path / "shapes", n_train=1, n_val=1), name="shapes")
    folder = draw_saliency(data)
    assert draw_saliency(data) == folder and {path.name for path in folder.iterdir()} == {f"{i}.png" for i in data.image_files}
    found = replace(data, saliency=find_saliency(folder, data))
    check_saliency(found, data.lists["all"])
    for image_id in data.image_files:
        drawn, truth = read_saliency(found, image_id, data.size(image_id)), data.mask(image_id) > 0
        assert (drawn[truth] > 20).all() and (drawn == 0).any() and ((drawn > 20) & ~truth).any()
