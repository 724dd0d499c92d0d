"""Class-agnostic masks: run lengths, the three forms of files, the vote, and what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.proposals import parts, rough, run_lengths
from wsss.data.proposals import check_proposals, digest_of_proposals, read_proposals
from wsss.data.rle import decode_rle
from wsss.errors import ConfigError, DataError
from wsss.refinement.proposals import vote_of_proposals
from wsss.refiners.method import SeedImage
from wsss.refiners.proposals import Proposals

RANDOM = np.random.default_rng(0)
SIZE = (7, 9)


def blobs(number=6, size=SIZE):
    """Masks (number, H, W) bool: boxes with holes."""
    masks = np.zeros((number, *size), bool)
    for mask in masks:
        top, left = RANDOM.integers(0, size[0] - 2), RANDOM.integers(0, size[1] - 2)
        mask[top:top + RANDOM.integers(2, 6), left:left + RANDOM.integers(2, 8)] = True
    return masks & (RANDOM.random((number, *size)) < 0.9)


def dataset(size=SIZE, **labels):
    return SimpleNamespace(size=lambda image_id: size, labels=labels or {"a": (0,)}, lists={"all": tuple(labels) or ("a",)})


# Run lengths.

@pytest.mark.parametrize("size", [(1, 1), (7, 9), (300, 200)])
def test_run_lengths_are_those_of_coco(size):
    coco = pytest.importorskip("pycocotools.mask")
    for mask in [np.zeros(size, bool), np.ones(size, bool), RANDOM.random(size) < 0.5, RANDOM.random(size) < 0.01]:
        coded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        for counts in (coded["counts"], coded["counts"].decode(), run_lengths(mask)["counts"]):
            assert np.array_equal(decode_rle({"size": list(size), "counts": counts}), mask)


@pytest.mark.parametrize(("coded", "message"), [
    ({"size": [2, 2], "counts": [1, 2]}, r"the counts of a mask fill 3 pixels; expected 4, as its size \[2, 2\] has"),
    ({"size": [2, 2], "counts": [5, -1]}, "fill 4 pixels"), ({"size": [2, 2], "counts": ["x"]}, "expected a list of whole numbers or COCO's compressed text"),
    ({"size": [2, 2], "counts": "\x7f\x7f"}, "the counts of a mask are .* expected a list of whole numbers or COCO's"), ({"size": [2, 2], "counts": "é"}, "the counts of a mask are"),
    ({"size": [2], "counts": []}, "expected run lengths"), ([[1, 2, 3]], "expected run lengths"), ({"counts": ""}, "expected run lengths")])
def test_run_lengths_that_cannot_be_used(coded, message):
    with pytest.raises(DataError, match=message):
        decode_rle(coded)


# Files.

def save(folder, form, masks):
    """The masks of the image `a` in a form."""
    if form == "folder":
        (folder / "a").mkdir(parents=True, exist_ok=True)
        (folder / "a/metadata.csv").write_text("id,area\n")   # Segment Anything's amg.py writes it
        for number, mask in enumerate(masks):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"a/{number}.png")
        return
    coco = pytest.importorskip("pycocotools.mask") if form == "compressed" else None
    coded = [run_lengths(mask) if coco is None else {"size": list(mask.shape), "counts": coco.encode(np.asfortranarray(
        mask.astype(np.uint8)))["counts"].decode()} for mask in masks]
    items = [{"segmentation": each, "area": int(mask.sum()), "bbox": [0, 0, 1, 1], "predicted_iou": 0.9} for each, mask in zip(coded, masks)]
    (folder / "a.json").write_text(json.dumps({"image": {"file_name": "a.jpg"}, "annotations": items} if form == "sa-1b" else items))


@pytest.mark.parametrize("form", ["folder", "counts", "compressed", "sa-1b"])
def test_masks_are_read_the_largest_first(tmp_path, form):
    masks = blobs()
    save(tmp_path, form, masks)
    check_proposals(tmp_path, dataset(), ["a"])
    found = read_proposals(tmp_path, "a", SIZE)
    assert [len(region) for region in found] == sorted((int(mask.sum()) for mask in masks), reverse=True)
    assert sorted(map(tuple, found)) == sorted(tuple(np.flatnonzero(mask)) for mask in masks)
    halved = read_proposals(tmp_path, "a", (3, 4))   # the networks' input is smaller
    assert {tuple(region) for region in halved} == {tuple(np.flatnonzero(mask[1::2, 1::2][:3, :4])) for mask in masks if mask[1::2, 1::2][:3, :4].any()}


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_numbered_regions(tmp_path, kind):
    labels = RANDOM.integers(0, 5, SIZE).astype(kind) * (1 if kind is np.uint8 else 300)
    Image.fromarray(labels).save(tmp_path / "a.png")
    check_proposals(tmp_path, dataset(), ["a"])
    assert sorted(map(tuple, read_proposals(tmp_path, "a", SIZE))) == sorted(tuple(np.flatnonzero(labels == v)) for v in set(labels.flat) - {0})


def test_what_is_missing_or_of_another_size_is_told_from_headers(tmp_path):
    save(tmp_path, "counts", blobs(400))   # longer than both ends that are read
    Image.fromarray(np.ones((9, 7), np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "c").mkdir()
    Image.fromarray(np.ones((3, 3), np.uint8)).save(tmp_path / "c/0.png")
    (tmp_path / "e.png").write_bytes(b"")
    with pytest.raises(DataError) as told:
        check_proposals(tmp_path, dataset(), list("abcde"))
    assert str(told.value).splitlines() == [
        f"refiner.masks={tmp_path}: 4 problems",
        f"  - {tmp_path}/b.png has masks 9 high and 7 wide, but its image is 7 high and 9 wide",
        f"  - {tmp_path}/c has masks 3 high and 3 wide, but its image is 7 high and 9 wide",
        "  - no proposals of 'd'; expected one of ID.json, ID.png, ID/",
        f"  - {tmp_path}/e.png: e.png is damaged or no PNG; write it again, or remove it"]
    with pytest.raises(DataError, match="a.json has masks 7 high and 9 wide, but its image is 5 high and 5 wide"):
        check_proposals(tmp_path, dataset((5, 5)), ["a"])


@pytest.mark.parametrize(("content", "message"), [
    ("{", "a.json: it is no JSON file"), ("{}", "it holds no list of masks; expected"), ("[1]", "it holds no list of masks"),
    (json.dumps([{"segmentation": {"size": [2, 2], "counts": [3]}}]), "a.json: the counts of a mask fill 3 pixels"),
    (json.dumps([{"segmentation": {"size": [2, n], "counts": [2 * n]}} for n in (2, 3)]), "its masks have several sizes .2 high and 2 wide, 2 high and 3 wide")])
def test_files_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_proposals(tmp_path, "a", (2, 2))


def test_pictures_in_colours_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="a.png has the channels RGB; expected a single one of whole numbers"):
        read_proposals(tmp_path, "a", (2, 2))
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="has no proposals of 'a' .ID.json, ID.png, ID/.; make them, or choose another refiner"):
        read_proposals(tmp_path, "a", (2, 2))


def test_files_count_by_their_content(tmp_path):
    digests = [digest_of_proposals(tmp_path, ["a", "b"])]
    for form in ("folder", "counts"):
        save(tmp_path, form, blobs())
        digests.append(digest_of_proposals(tmp_path, ["a", "b"]))
        save(tmp_path, form, np.ones((1, *SIZE), bool))
        digests.append(digest_of_proposals(tmp_path, ["a", "b"]))
    assert len(set(digests)) == 5
    (tmp_path / "c.json").write_text("not of the list")
    assert digest_of_proposals(tmp_path, ["a", "b"]) == digests[-1]
    assert Proposals(str(tmp_path)).files(dataset()) == {"masks": digests[-1]} and Proposals(None).files(dataset()) == {}


# The vote.

def slow_vote(scores, masks):
    """Pixel by pixel."""
    n, k, height, width = scores.shape
    out = scores.clone()
    for i in range(n):
        means = [scores[i][:, torch.from_numpy(mask)].mean(1) for mask in masks]
        for y in range(height):
            for x in range(width):
                over = [(int(mask.sum()), mean) for mask, mean in zip(masks, means) if mask[y, x]]
                with_class = [each for each in over if each[1].argmax() > 0]
                if over:
                    out[i, :, y, x] = min(with_class or over, key=lambda each: each[0])[1]
    return out


def test_the_smallest_proposal_with_a_class_wins():
    masks = [mask for mask in blobs(8) if mask.any()]
    masks = list({int(mask.sum()): mask for mask in masks}.values())   # of different areas, so that there is one smallest
    scores = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    scores[:, 0] = torch.tensor([0.3, 0.5, 0.6])[:, None, None]
    regions = sorted((np.flatnonzero(mask) for mask in masks), key=lambda region: -len(region))
    torch.testing.assert_close(vote_of_proposals(scores, regions), slow_vote(scores, masks))
    assert torch.equal(vote_of_proposals(scores, regions)[1:2], vote_of_proposals(scores[1:2], regions)) and torch.equal(vote_of_proposals(scores, []), scores)


def test_parts_without_a_class_do_not_erase_the_object(tmp_path):
    """The seed covers the head; the object is a proposal, and so are head and body, and the ground below it."""
    seed, whole, head = torch.zeros(6, 6), np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    whole[:4], head[:2] = True, True
    seed[:2], seed[2:5, :2] = 0.9, 0.6   # spills over to the ground in a corner
    save(tmp_path, "counts", [head, whole & ~head, whole, ~whole])
    image = SeedImage(lambda: seed[None], None, None, "a")
    scores = torch.stack([torch.full((6, 6), 0.5), seed])[None]
    mask = Proposals(str(tmp_path)).scores(image, scores).argmax(1)[0]
    assert np.array_equal(mask, whole)


def test_a_folder_has_to_be_named():
    with pytest.raises(ConfigError, match="refiner.masks=None is not possible: expected a folder with the proposals of each image"):
        Proposals(None).check(dataset(), ["a"])
    with pytest.raises(DataError, match="refiner.masks=nowhere: 1 problem\n  - no proposals of 'b'"):
        Proposals("nowhere").check(dataset(a=(), b=(1,)), ["a", "b"])   # an image without a class needs none


def test_drawn_proposals_are_near_the_object():
    mask = np.zeros((60, 60), bool)
    mask[15:45, 10:50] = True
    found = rough(mask, np.random.default_rng(1))
    assert 0.7 < (found & mask).sum() / (found | mask).sum() < 1
    cut = parts(found, 3, np.random.default_rng(1))
    assert len(cut) == 3 and np.array_equal(np.sum(cut, 0) > 0, found) and np.sum(cut) == found.sum()
