"""Files of the official MCTformer code: the parameters of its networks by name and shape, and its dictionaries of maps."""

import numpy as np
import pytest
import torch

from tests.networks import new_backbone
from wsss.classifiers.mctformer import MCTformer
from wsss.errors import DataError, WeightsError
from wsss.networks.foreign import is_foreign
from wsss.networks.weights import fill, read_tensors
from wsss.official import read_dictionary
from wsss.official_mctformer import (
    class_maps,
    is_class_maps,
    is_mctformer,
    official_names,
    own_names,
    write_class_maps,
)
from wsss.official_networks import CAM, own_state, write_state

# models.py and vision_transformer.py, as registered: D features, C classes, N cells and H hidden features of each of the blocks
SHAPES = {"cls_token": "1CD", "pos_embed": "1TD", "patch_embed.proj.weight": "D3PP", "patch_embed.proj.bias": "D"}
BLOCK = {"norm1.weight": "D", "norm1.bias": "D", "attn.qkv.weight": "QD", "attn.qkv.bias": "Q", "attn.proj.weight": "DD", "attn.proj.bias": "D",
         "norm2.weight": "D", "norm2.bias": "D", "mlp.fc1.weight": "HD", "mlp.fc1.bias": "H", "mlp.fc2.weight": "DH", "mlp.fc2.bias": "D"}
HEADS = {True: {"head.weight": "CD33", "head.bias": "C"}, False: {"head.weight": "CD", "head.bias": "C"}}   # V2, V1


def official_shapes(cell_head, classes, features, hidden, cells, depth, patch=16):
    sizes = {"1": 1, "3": 3, "C": classes, "D": features, "T": classes + cells, "P": patch, "Q": 3 * features, "H": hidden}
    names = {**SHAPES, **{f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in BLOCK.items()},
             "norm.weight": "D", "norm.bias": "D", **HEADS[cell_head]}
    return {name: tuple(sizes[letter] for letter in shape) for name, shape in names.items()}


@pytest.mark.parametrize("cell_head", [True, False])
def test_the_network_of_the_paper_has_the_official_names_and_shapes(cell_head):
    with torch.device("meta"):
        state = MCTformer(cell_head).new(new_backbone("deit_small_patch16_224"), 20).state_dict()
    assert {name: tuple(value.shape) for name, value in official_names(state).items()} == official_shapes(cell_head, 20, 384, 1536, 196, 12)


@pytest.mark.parametrize("cell_head", [True, False])
def test_a_checkpoint_is_read_and_written(tmp_path, cell_head):
    generator = torch.Generator().manual_seed(0)
    shapes = official_shapes(cell_head, 3, 64, 192, 100, 6)
    official = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save({"model": {f"module.{name}": value for name, value in official.items()}}, tmp_path / "checkpoint.pth")
    tensors = read_tensors(tmp_path / "checkpoint.pth")
    assert is_mctformer(tensors)
    state = own_state(own_names(tensors, "file"), CAM, "file")   # as imported_classifier
    assert not is_foreign(state, "tokens")
    net = MCTformer(cell_head).new(new_backbone("test_vit"), 3).eval()
    assert not is_mctformer(net.state_dict()) and not is_foreign(net.state_dict(), "tokens")
    fill(net, state, "file")
    assert torch.equal(net.tokens, official["cls_token"]) and torch.equal(net.backbone.net.pos_embed[:, 1:], official["pos_embed"][:, 3:])
    write_state(tmp_path / "again.pth", {"model": official_names(net.state_dict())})
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert {name: tuple(value.shape) for name, value in again.items()} == shapes   # strict=True
    for name, value in again.items():
        assert torch.equal(value, torch.zeros_like(value) if name.startswith("head.") and not cell_head else official[name]), name
    official["norm.bias"][3] = torch.nan
    with pytest.raises(WeightsError, match="file: norm.bias holds numbers that are not finite"):
        own_names(official, "file")


def test_other_vision_transformers_are_not_of_mctformer():
    with torch.device("meta"):
        net = new_backbone("test_vit").net
    assert not is_mctformer(net.state_dict())


def test_a_dictionary_by_class_is_read_and_written(tmp_path):
    maps = np.random.default_rng(0).random((2, 5, 7), np.float32)
    write_class_maps(tmp_path / "a.npy", [4, 1], maps)
    there = np.load(tmp_path / "a.npy", allow_pickle=True).item()   # as evaluation.py and psa/infer_aff.py do
    assert list(there) == [4, 1] and all(type(key) is int for key in there) and np.array_equal(there[1], maps[1])
    found = read_dictionary(tmp_path / "a.npy")
    assert is_class_maps(found) and not is_class_maps({"keys": maps, "cam": maps})
    assert np.array_equal(class_maps(found, "a.npy", (5, 7), (1, 4)), maps[[1, 0]])
    assert class_maps({}, "a.npy", (5, 7), ()).shape == (0, 5, 7)
    for wrong, message in (({1: maps[0]}, r"a.npy holds maps of the classes \[1\] \(0-based\), the labels of the image are \[1, 4\]"),
                           ({1: maps[0], 4: maps[1, :4]}, r"the map of class 4 is float32 \(4, 7\), expected real numbers \(5, 7\)"),
                           ({1: maps[0], 4: 3 * maps[1]}, "a.npy holds numbers that are not finite or outside of 0 to 1")):
        with pytest.raises(DataError, match=message):
            class_maps(wrong, "a.npy", (5, 7), (1, 4))
