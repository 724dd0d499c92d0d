"""Maps of any grid are stored and read by the facts in their index alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from steps.make_lpcam import _packed_on
from steps.parts.official import OfficialMaps
from steps.runtime.artifacts import Maps, encode_array
from steps.runtime.journal import Journal
from steps.runtime.store import FileWriter
from wsss.cams.maps import at_size, grids, pack, rebuild
from wsss.official import OfficialMaps as Official
from wsss.official import write_maps


def store(folder, content: bytes, facts: dict) -> Maps:
    """The maps of a step that has made one image, "a", of which the classes 0 and 3 are present."""
    folder.mkdir(exist_ok=True)
    journal = Journal(folder)
    journal.add("a", FileWriter(folder).write({"a.npy": content}), 0.1, source="", classes=[0, 3], **facts)
    journal.close()
    return Maps(folder)


def stored(folder, maps: list[torch.Tensor], size: tuple[int, int], **facts) -> Maps:
    """What a step stores that makes `maps`, for an image of `size`."""
    return store(folder, encode_array(pack(maps)[0].numpy()),
                 {"height": size[0], "width": size[1], "grids": [list(each.shape[1:]) for each in maps], **facts})


def random_maps(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.rand(2, *size, generator=draws) for size in sizes]


def normalised(maps: torch.Tensor) -> torch.Tensor:
    return maps / maps.amax(dim=(1, 2), keepdim=True)


def assert_near(ours: torch.Tensor, expected: torch.Tensor, atol: float = 1e-3) -> None:   # through float16
    torch.testing.assert_close(ours, expected, rtol=0, atol=atol)


def test_a_signed_map_at_full_resolution(tmp_path):
    [values] = random_maps((61, 45))
    values -= 0.5
    maps = stored(tmp_path / "step", [values], (61, 45))
    assert_near(maps.at("a", "full"), normalised(values), 2e-3)
    assert maps.at("a", "full").min() < -0.9 and maps.at("a", "full").amax(dim=(1, 2)).tolist() == [1, 1]
    assert_near(maps.at("a", "strided"), normalised(at_size(values, (16, 12))), 2e-3)
    assert maps.packed("a").dtype == np.float16 and maps.packed("a").shape == (2, 61 * 45)


@pytest.mark.parametrize("size", [(224, 224), (203, 150)])
def test_the_patch_grid_of_a_transformer(tmp_path, size):
    [values] = random_maps((14, 14))
    maps = stored(tmp_path / "step", [values], size, range=[0, 1])
    assert_near(maps.at("a", "full"), normalised(at_size(values, size)))
    assert_near(maps.at("a", "strided"), normalised(at_size(values, (-(-size[0] // 4), -(-size[1] // 4)))))


def test_stride_8_at_four_scales(tmp_path):
    values = random_maps(*grids(97, 131, 8))
    maps = stored(tmp_path / "step", values, (97, 131), pad=8, range=[0, 1])
    padded = sum(at_size(each, (104, 136)) for each in values)
    assert_near(maps.at("a", "full"), normalised(padded[:, :97, :131]))
    assert_near(maps.at("a", "strided"), normalised(sum(at_size(each, (25, 33)) for each in values)))


def test_any_size_is_the_full_map_resized(tmp_path):
    maps = stored(tmp_path / "step", random_maps(*grids(97, 131, 16)), (97, 131), pad=16)
    full = maps.at("a", "full")
    assert torch.equal(maps.at("a", (97, 131)), full) and torch.equal(maps.at("a", [40, 200]), at_size(full, (40, 200)))


def test_the_epsilon_is_in_units_of_the_maps_before_they_were_stored(tmp_path):
    values = random_maps((6, 8))[0] * 20
    maps = stored(tmp_path / "step", [values], (96, 128), pad=16, epsilon=5.0, maxima=values.amax(dim=(1, 2)).tolist())
    full = at_size(values, (96, 128))
    assert_near(maps.at("a", "full"), full / (full.amax(dim=(1, 2), keepdim=True) + 5))


def test_imported_maps_are_both_official_ones(tmp_path):
    """Not computed from each other: they come back as they were in the file."""
    cam, high_res = (normalised(each).numpy() - 1 for each in random_maps((8, 13), (30, 50)))
    write_maps(tmp_path / "a.npy", Official(np.array([0, 3]), cam, high_res))
    context = SimpleNamespace(dataset=SimpleNamespace(working_size=lambda image_id: (30, 50), labels={"a": (0, 3)}))
    contents, facts = OfficialMaps("")._convert(context, tmp_path, "a")
    maps = store(tmp_path / "imported", contents["a.npy"], facts)
    for size, expected in (("full", high_res), ("strided", cam)):
        assert np.array_equal(maps.at("a", size).numpy(), expected.astype(np.float16).astype(np.float32))
    assert torch.equal(maps.at("a", (60, 100)), at_size(maps.at("a", "full"), (60, 100)))
    OfficialMaps("").writer(tmp_path / "imported", 20)(tmp_path / "again.npy", "a")
    again = np.load(tmp_path / "again.npy", allow_pickle=True).item()
    np.testing.assert_allclose(again["high_res"], high_res, rtol=0, atol=5e-4)


def test_lpcam_keeps_a_cam_on_its_own_grids(tmp_path):
    """The CAM of a class without prototypes: as stored on equal grids, else resized to the grids of the features."""
    wanted = [list(grid) for grid in grids(96, 131, 16)]
    same = stored(tmp_path / "same", random_maps(*wanted), (96, 131), pad=16)
    assert np.array_equal(_packed_on(wanted, same, "a"), same.packed("a"))
    smooth = at_size(random_maps((2, 3))[0], (96, 131))
    finer = stored(tmp_path / "finer", [smooth], (96, 131))
    packed = _packed_on(wanted, finer, "a")
    assert packed.dtype == np.float16 and packed.shape == same.packed("a").shape
    assert_near(rebuild(packed, 96, 131, wanted, "full"), normalised(smooth), 0.1)
