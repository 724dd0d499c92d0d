"""Files of the official code: parameter names against an independent construction, a reader that runs nothing, checked maps."""

import copyreg
import io
import os
import pickle

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from pipeline.config import compose, typed
from tests.networks import new_backbone, new_classifier
from tests.wsss.official_networks import OfficialAmn, OfficialCam, OfficialIrn
from wsss.errors import DataError, WeightsError
from wsss.networks.affinitynet import AffinityNet
from wsss.networks.amn import AMN as OurAmn
from wsss.networks.backbones.resnet38_layers import ResNet38
from wsss.networks.irn import IRN as OurIrn
from wsss.networks.weights import fill, read_tensors
from wsss.official import PROTOTYPE_FILES, OfficialMaps, read_dictionary, read_maps, read_prototypes, write_label, write_maps
from wsss.official_edam import official_edam
from wsss.official_networks import AMN, CAM, IRN, PSA, official_state, own_state, read_second, write_network, write_second

IMAGE = torch.randn(2, 3, 61, 90, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def cam() -> OfficialCam:
    return OfficialCam(20)


@pytest.fixture(scope="module")
def irn() -> OfficialIrn:
    return OfficialIrn()


def our_classifier():
    return new_classifier(new_backbone("resnet50", "frozen_batch", seed=1), 20).eval()


def our_irn() -> OurIrn:
    return OurIrn(new_backbone("resnet50", "frozen_batch", seed=1)).eval()


@torch.inference_mode()
def test_the_official_networks_compute_the_same_here(cam, irn):
    ours = our_classifier()
    fill(ours, own_state(cam.state_dict(), CAM, "file"), "file")
    torch.testing.assert_close(ours(IMAGE), cam(IMAGE))
    torch.testing.assert_close(ours.features(IMAGE), cam.stage4(cam.stage3(cam.stage2(cam.stage1(IMAGE)))))
    ours = our_irn()
    fill(ours, own_state(irn.state_dict(), IRN, "file"), "file")
    assert ours.mean_shift.running_mean.tolist() == [0.25, -1.5]
    for mine, theirs in zip(ours(IMAGE), irn(IMAGE), strict=True):
        torch.testing.assert_close(mine, theirs)


# The parameters of AMN's own layers, of C classes and D features (net/resnet50_amn.py): each is there twice.
AMN_SHAPES = {f"{place}{name}": shape for embedding, pyramid in (("label_enc.", "classifier.1."), ("newly_added.1.", "newly_added.0.1."))
              for place, names in ((embedding, {"weight": "DC", "bias": "D"}),
                                   (pyramid, {f"c{i}.{name}": shape for i in range(4) for name, shape in (("weight", "LD33"), ("bias", "L"))}))
              for name, shape in names.items()}


@torch.inference_mode()
def test_the_official_amn_computes_the_same_here_and_reads_what_is_written(tmp_path):
    official, ours = OfficialAmn(3, "resnet18"), OurAmn(new_backbone("resnet18", "frozen_batch", seed=1), 3, (6, 12, 18, 24), 0.1).eval()
    sizes = {"D": 512, "C": 3, "L": 4, "3": 3}
    theirs = {name: list(value.shape) for name, value in official.state_dict().items() if name in AMN_SHAPES}
    assert theirs == {name: [sizes[letter] for letter in shape] for name, shape in AMN_SHAPES.items()}
    fill(ours, own_state(official.state_dict(), AMN, "file"), "file")
    image, labels = IMAGE[:1], torch.tensor([[1.0, 0, 1]])
    torch.testing.assert_close(ours(image, labels), official(image, labels))
    write_network(tmp_path / "res50_amn.pth", ours.state_dict(), AMN)
    state = torch.load(tmp_path / "res50_amn.pth", weights_only=True)
    official.load_state_dict(state, strict=True)
    assert own_state(state, AMN, "file").keys() == ours.state_dict().keys()


# The names and shapes in res50_recam_4.pth besides the backbone, of C classes and D features, and in recam_predictor_4.pth
# (net/resnet50_cam.py, Net and Class_Predictor; step/train_recam.py).
RECAM_SHAPES = {"classifier.weight": "CD11", "newly_added.0.weight": "CD11"}, {"classifier.weight": "CD11"}


def test_recam_has_a_second_file(tmp_path):
    sizes = {"C": 20, "D": 512, "1": 1}
    network, second = OfficialCam(20, "resnet18"), torch.randn(20, 512, 1, 1)
    theirs = {name: list(value.shape) for name, value in network.state_dict().items() if name.startswith(("classifier", "newly_added"))}
    assert theirs == {name: [sizes[letter] for letter in shape] for name, shape in RECAM_SHAPES[0].items()}
    write_second(tmp_path / "res50_recam_4.pth", second)
    there = torch.load(tmp_path / "recam_predictor_4.pth", weights_only=True)
    assert {name: list(value.shape) for name, value in there.items()} == {name: [sizes[letter] for letter in shape] for name, shape in RECAM_SHAPES[1].items()}
    assert torch.equal(read_second(tmp_path / "res50_recam_4.pth", "file"), second)
    for name in ("other.pth", "res50_recam_3.pth"):
        with pytest.raises(WeightsError, match=r"train_recam.weights=F has no second classifier of ReCAM \(second.weight\)"):
            read_second(tmp_path / name, "train_recam.weights=F")
    torch.save(network.state_dict(), tmp_path / "recam_predictor_4.pth")
    with pytest.raises(WeightsError, match="recam_predictor_4.pth holds .*; expected classifier.weight alone"):
        read_second(tmp_path / "res50_recam_4.pth", "file")


# The names and shapes in resnet38_aff.pth (network/resnet38d.py, network/resnet38_aff.py), by the channels of each block: the
# first convolution's inputs, those of its outputs in turn, the sides of the kernels, and whether the shortcut is a convolution.
AFF_BLOCKS = {**{f"b2{end}": ((inputs, 128, 128), (3, 3), inputs == 64) for end, inputs in (("", 64), ("_1", 128), ("_2", 128))},
              **{f"b3{end}": ((inputs, 256, 256), (3, 3), inputs == 128) for end, inputs in (("", 128), ("_1", 256), ("_2", 256))},
              **{f"b4{end}": ((inputs, 512, 512), (3, 3), inputs == 256)
                 for end, inputs in (("", 256), ("_1", 512), ("_2", 512), ("_3", 512), ("_4", 512), ("_5", 512))},
              **{f"b5{end}": ((inputs, 512, 1024), (3, 3), inputs == 512) for end, inputs in (("", 512), ("_1", 1024), ("_2", 1024))},
              "b6": ((1024, 512, 1024, 2048), (1, 3, 1), True), "b7": ((2048, 1024, 2048, 4096), (1, 3, 1), True)}


def aff_shapes():
    def norm(place, channels):
        return {**{f"{place}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")}, f"{place}.num_batches_tracked": ()}
    shapes = {"conv1a.weight": (64, 3, 3, 3), **norm("bn7", 4096), "f8_3.weight": (64, 512, 1, 1), "f8_4.weight": (128, 1024, 1, 1),
              "f8_5.weight": (256, 4096, 1, 1), "f9.weight": (448, 448, 1, 1)}
    for name, (channels, kernels, shortcut) in AFF_BLOCKS.items():
        for place, inputs, outputs, side in zip(("2a", "2b1", "2b2"), channels, channels[1:], kernels):
            shapes |= {f"{name}.conv_branch{place}.weight": (outputs, inputs, side, side), **norm(f"{name}.bn_branch{place}", inputs)}
        if shortcut:
            shapes[f"{name}.conv_branch1.weight"] = (channels[-1], channels[0], 1, 1)
    return shapes


def test_affinitynet_has_the_official_names_and_shapes():
    with torch.device("meta"):
        network = AffinityNet(ResNet38("frozen_batch"))
    official = official_state(network.state_dict(), PSA)
    assert {name: tuple(value.shape) for name, value in official.items()} == aff_shapes()
    old = {name: value for name, value in official.items() if not name.endswith("num_batches_tracked")}   # of PyTorch 0.4, that of its code
    assert len(old) == len(official) - 37


def test_affinitynet_comes_back_equal(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, other = (AffinityNet(ResNet38("frozen_batch", width=2), seed=seed) for seed in (0, 1))
    write_network(tmp_path / "resnet38_aff.pth", network.state_dict(), PSA)
    there = torch.load(tmp_path / "resnet38_aff.pth", weights_only=True)
    assert "conv1a.weight" in there and not any(name.startswith("backbone") for name in there)
    for state in (there, {f"module.{name}": value for name, value in there.items()}, network.state_dict(),
                  {name: value for name, value in there.items() if not name.endswith("num_batches_tracked")}):
        fill(other, own_state(state, PSA, "file"), "file")
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("classes", [(3, 7), ()])
def test_the_dictionary_of_amn_has_the_background_first(tmp_path, classes):
    maps = official(classes=(0, *classes)) | {"keys": np.array(classes, np.int64)}   # 1 + K maps
    write_maps(tmp_path / "a.npy", OfficialMaps(**maps))
    there = np.load(tmp_path / "a.npy", allow_pickle=True).item()
    assert set(there) == ({"keys", "cam", "high_res"} if classes else {"keys"})   # step/make_amn_cam_coco.py
    back = read_maps(tmp_path / "a.npy", (30, 45), classes, background=True)
    assert back.keys.tolist() == list(classes) and len(back.cam) == len(back.high_res) == 1 + len(classes)
    if classes:
        assert np.array_equal(back.cam, maps["cam"]) and np.array_equal(back.high_res, maps["high_res"])
        turned = read_maps(tmp_path / "a.npy", (30, 45), (7, 3), background=True)
        assert np.array_equal(turned.cam, maps["cam"][[0, 2, 1]])
        with pytest.raises(DataError, match=r"cam is float32 \(3, 8, 12\), expected real numbers \(2, 8, 12\)"):
            read_maps(tmp_path / "a.npy", (30, 45), (3, 7))


def test_an_older_mean_shift_that_is_a_batch_norm(irn):
    state = {name: value for name, value in irn.state_dict().items() if not name.startswith("mean_shift")}
    state |= {f"{place}.{name}": torch.ones(2) for place in ("fc_dp7.4", "dp_layers.6.4") for name in ("running_var", "num_batches_tracked")}
    assert own_state(state, IRN, "file").keys() == own_state(irn.state_dict(), IRN, "file").keys()


@pytest.mark.parametrize("wrapped", [lambda state: {f"module.{name}": value for name, value in state.items()},
                                     lambda state: {"state_dict": state, "epoch": 5}])
def test_a_state_dict_of_data_parallel_or_in_a_checkpoint(cam, tmp_path, wrapped):
    torch.save(wrapped(cam.state_dict()), tmp_path / "res50_cam.pth")
    state = own_state(read_tensors(tmp_path / "res50_cam.pth"), CAM, "file")
    assert state.keys() == our_classifier().state_dict().keys()


@pytest.mark.parametrize(("official", "ours", "layout"), [(OfficialCam(20), our_classifier, CAM), (OfficialIrn(), our_irn, IRN)])
def test_what_is_written_loads_strictly_into_the_official_network(tmp_path, official, ours, layout):
    network = ours()
    write_network(tmp_path / "net.pth", network.state_dict(), layout)
    state = torch.load(tmp_path / "net.pth", weights_only=True)
    constants = {name: value for name, value in official.state_dict().items() if name in ("path_indices0", "disp_target")}
    official.load_state_dict({**state, **constants}, strict=True)
    assert (tmp_path / "net.pth").stat().st_size < 1.1 * sum(value.nbytes for value in network.state_dict().values())   # copies are shared
    back = own_state(read_tensors(tmp_path / "net.pth"), layout, "file")
    assert back.keys() == network.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in network.state_dict().items())


def test_our_own_names_are_read_too_and_numbers_that_are_not_finite_refused():
    assert own_state(our_classifier().state_dict(), CAM, "FILE").keys() == our_classifier().state_dict().keys()
    state = {name: value.clone() for name, value in official_state(our_classifier().state_dict(), CAM).items()}
    state["resnet50.bn1.running_var"][0] = torch.nan
    with pytest.raises(WeightsError, match="FILE: resnet50.bn1.running_var holds numbers that are not finite"):
        own_state(state, CAM, "FILE")


def official(height=30, width=45, classes=(3, 7), seed=0, **changes) -> dict:
    draws = np.random.default_rng(seed)
    shapes = {"cam": (-(-height // 4), -(-width // 4)), "high_res": (height, width)}
    maps = {name: draws.random((len(classes), *shape), dtype=np.float32) for name, shape in shapes.items()}
    return {"keys": np.array(classes), **maps, **changes}


@pytest.mark.parametrize("lpcam", [False, True])
def test_both_forms_of_the_official_dictionary(tmp_path, lpcam):
    maps = OfficialMaps(**official())
    write_maps(tmp_path / "a.npy", maps, lpcam)
    assert b"numpy.core.multiarray" in (tmp_path / "a.npy").read_bytes() and b"_core" not in (tmp_path / "a.npy").read_bytes()
    there = np.load(tmp_path / "a.npy", allow_pickle=True).item()   # as the official code reads it
    tensors = {name: isinstance(value, torch.Tensor) for name, value in there.items()}
    assert tensors == ({"keys": False, "cam": True, "high_res": True} if lpcam else {"keys": True, "cam": True, "high_res": False})
    assert np.pad(there["keys"] + 1, (1, 0), mode="constant").tolist() == [0, 4, 8]   # step/cam_to_ir_label.py
    back = read_maps(tmp_path / "a.npy", (30, 45), (3, 7))
    assert back.keys.tolist() == [3, 7] and back.keys.dtype == np.int64
    for name in ("cam", "high_res"):
        assert np.array_equal(getattr(back, name), getattr(maps, name)) and getattr(back, name).dtype == np.float32


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_files_of_old_numpy(tmp_path, protocol):
    """NumPy 1.16 wrote protocol 2 and called its module numpy.core."""
    header, content = io.BytesIO(), np.array(official(), dtype=object)
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    pickled = pickle.dumps(content, protocol).replace(b"numpy._core", b"numpy.core")
    if protocol == 4:   # strings with their length before them, and the frame's
        pickled = pickle.dumps(content, protocol)
    (tmp_path / "a.npy").write_bytes(header.getvalue() + pickled)
    assert np.array_equal(read_dictionary(tmp_path / "a.npy")["cam"], official()["cam"])


def test_odd_maps(tmp_path):
    def back(maps, classes):
        np.save(tmp_path / "a.npy", maps)
        return read_maps(tmp_path / "a.npy", (30, 45), classes)
    unsorted = back(official(classes=(7, 3)), (3, 7))
    assert unsorted.keys.tolist() == [3, 7] and np.array_equal(unsorted.cam[0], official(classes=(7, 3))["cam"][1])
    for maps in (official(classes=()), {"keys": torch.zeros(0, dtype=torch.long)}):   # an image without a class
        assert (back(maps, ()).cam.shape, back(maps, ()).high_res.shape) == ((0, 8, 12), (0, 30, 45))
    maps = official()
    maps["cam"][1], maps["high_res"][1] = np.nan, np.nan   # official LPCAM divided by zero
    assert not back(maps, (3, 7)).cam[1].any() and np.array_equal(back(maps, (3, 7)).cam[0], maps["cam"][0])


@pytest.mark.parametrize(("changes", "message"), [
    ({"keys": np.array([3, 8])}, r"a.npy holds maps of the classes \[3, 8\] \(0-based\), the labels of the image are \[3, 7\]"),
    ({"keys": np.array([3, 3])}, r"maps of the classes \[3, 3\]"),
    ({"keys": "both"}, r"maps of the classes \[None\]"),
    ({"cam": np.zeros((2, 8, 13), np.float32)}, r"a.npy: cam is float32 \(2, 8, 13\), expected real numbers \(2, 8, 12\)"),
    ({"high_res": np.zeros((2, 30, 45), int)}, r"a.npy: high_res is int64"),
    ({"high_res": None}, "a.npy: high_res is object"),
    ({"cam": np.full((2, 8, 12), 2.0)}, "a.npy: cam holds numbers that are above 1 or not finite"),
    ({"cam": np.full((2, 8, 12), -np.inf)}, "a.npy: cam holds numbers that are above 1 or not finite"),
])
def test_maps_that_do_not_fit_are_refused(tmp_path, changes, message):
    np.save(tmp_path / "a.npy", official(**changes))
    with pytest.raises(DataError, match=message):
        read_maps(tmp_path / "a.npy", (30, 45), (3, 7))


class Trap:
    """Unpickled, it calls `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class _Exotic:
    pass


def in_the_bytes_of_a_tensor(trap):
    inner = io.BytesIO()
    torch.save(trap, inner, _use_new_zipfile_serialization=False)
    return Trap(torch.storage._load_from_bytes, inner.getvalue())


@pytest.mark.parametrize(("trap", "named"), [
    (lambda path: Trap(os.system, f"touch {path}"), "posix.system"),
    (lambda path: Trap(eval, f"open({str(path)!r}, 'w')"), "builtins.eval"),
    (lambda path: Trap(os.mkdir, str(path)), "posix.mkdir"),
    (lambda path: Trap(np.save, str(path), 1), "numpy.save"),
    (lambda path: Trap(copyreg._reconstructor, _Exotic, object, None), "copyreg._reconstructor"),
    (lambda path: torch.nn.Linear(1, 1), "Linear"),
    (lambda path: in_the_bytes_of_a_tensor(Trap(os.system, f"touch {path}")), "posix.system"),
])
def test_what_else_a_pickle_refers_to_is_named_and_not_run(tmp_path, trap, named):
    np.save(tmp_path / "a.npy", official(extra=trap(tmp_path / "touched")))
    with pytest.raises(DataError, match=rf"a.npy refers to .*{named}; expected NumPy arrays and torch tensors only. Nothing in it was run"):
        read_dictionary(tmp_path / "a.npy")
    assert not (tmp_path / "touched").exists()


def test_no_file_can_change_what_others_use(tmp_path):
    """A pickle may set attributes (BUILD) on what it is given."""
    stack = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x0c__defaults__Ns\x86b."
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    (tmp_path / "a.npy").write_bytes(header.getvalue() + stack)
    before = torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(DataError):
        read_dictionary(tmp_path / "a.npy")
    assert before and torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_a_truncated_file_and_one_without_a_dictionary(tmp_path):
    np.save(tmp_path / "a.npy", official())
    content = (tmp_path / "a.npy").read_bytes()
    for kept in (0, 5, 100, 400, len(content) * 9 // 10):
        (tmp_path / "a.npy").write_bytes(content[:kept])
        with pytest.raises(DataError, match="a.npy is damaged or not a .npy file"):
            read_dictionary(tmp_path / "a.npy")
    for other in (np.zeros(3), np.array([{}, {}], dtype=object), np.array(["text"])):
        np.save(tmp_path / "a.npy", other)
        with pytest.raises(DataError, match="a.npy holds no dictionary"):
            read_dictionary(tmp_path / "a.npy")


def test_labels_are_grey_as_the_official_code_reads_them(tmp_path):
    label = np.array([[0, 1, 20], [255, 3, 0]], np.uint8)
    write_label(tmp_path / "a.png", label)
    assert np.array_equal(imageio.imread(tmp_path / "a.png"), label)


def test_official_prototypes(tmp_path):
    draws = torch.Generator().manual_seed(0)
    fg = {0: torch.randn(2, 8, generator=draws), 1: torch.randn(1, 8, generator=draws)}
    bg = {0: torch.randn(0, 8), 1: torch.randn(3, 8, generator=draws)}
    for name, content in zip(PROTOTYPE_FILES, (fg, bg), strict=True):
        torch.save(content, tmp_path / name)
    arrays = read_prototypes(tmp_path)
    assert arrays["class_index"].tolist() == [0, 0, 1, 1, 1, 1] and arrays["is_background"].tolist() == [False] * 3 + [True] * 3
    assert np.array_equal(arrays["center"][3:], bg[1].numpy()) and arrays["kept"].all()


@pytest.mark.parametrize("content", [{"a": torch.zeros(2, 8)}, {0: "text"}, [torch.zeros(2, 8)], {0: torch.zeros(8)}, {}])
def test_prototypes_that_are_none(tmp_path, content):
    for name in PROTOTYPE_FILES:
        torch.save(content, tmp_path / name)
    with pytest.raises(DataError, match="class_ceneters.pt is damaged, or not a dictionary of prototypes by class"):
        read_prototypes(tmp_path)


# The parameters of EDAM's own layers (network/resnet38_EDAM_cls.py, transformer.py, embedding/; utils/ as in BERT-pytorch).
EDAM_BLOCK = {**{f"attention.{layer}.{end}": shape for layer in ("linear_layers.0", "linear_layers.1", "linear_layers.2", "output_linear")
                 for end, shape in (("weight", (128, 128)), ("bias", (128,)))},
              "feed_forward.w_1.weight": (512, 128), "feed_forward.w_1.bias": (512,), "feed_forward.w_2.weight": (128, 512),
              "feed_forward.w_2.bias": (128,), **{f"{place}_sublayer.norm.{end}": (128,) for place in ("input", "output") for end in ("a_2", "b_2")}}
EDAM_SHAPES = {"mask_layer.weight": (21, 4096, 3, 3), "d_d.weight": (128, 4096, 1, 1), "embedding.segment.weight": (5, 128),
               "embedding.position.pe": (1, 46 * 46, 128), **{f"fc_list.{c}.weight": (1, 128, 1, 1) for c in range(20)},
               **{f"trans_list.{c}.0.{name}": shape for c in range(20) for name, shape in EDAM_BLOCK.items()}}


def test_the_names_and_shapes_of_the_official_edam():
    config = typed(compose(["classifier=edam", "backbone=resnet38_edam"]))
    with torch.device("meta"):
        ours = config.classifier.new(config.backbone.new("frozen_batch"), 20)
    found = {name: tuple(value.shape) for name, value in config.classifier.official(ours.state_dict()).items()}
    own = {name: shape for name, shape in found.items() if not name.startswith(("conv1a", "b2", "b3", "b4", "b5", "b6", "b7", "bn7"))}
    assert own == EDAM_SHAPES
    assert found["b6.conv_branch2b1.weight"] == (1024, 512, 3, 3) and found["bn7.weight"] == (4096,)
    names = set(found) - set(own)
    assert {name.removeprefix("backbone.") for name in ours.state_dict() if name.startswith("backbone.")} == names
    assert config.classifier.no_official(ours.backbone.facts) == ""
    trained = {name for name, parameter in ours.backbone.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(("conv1a", "b2", "bn")) or ".bn_" in name for name in trained) and "b3.conv_branch2a.weight" in trained


def test_the_table_of_positions_of_the_official_edam():
    state = {"segments": torch.zeros(5, 8), "mask_layer.weight": torch.zeros(1), "reduction.weight": torch.zeros(1), "outputs": torch.zeros(0, 1, 8)}
    table = official_edam(state, 3)["embedding.position.pe"]
    assert table.shape == (1, 9, 8) and table.dtype == torch.float32
    torch.testing.assert_close(table[0, :, 0], torch.arange(9.0).sin())
