"""Maps in files as other projects write them: the forms, the classes, the grids, the ranges, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from wsss.errors import ConfigError, DataError
from wsss.map_files.files import find_files
from wsss.map_files.layout import Layout, class_names
from wsss.map_files.reading import Activation, Values, check_headers, maps_of, read_arrays

CLASSES = ("aeroplane", "a/b", "cat", "person")
SIZE, LABELS = (12, 20), (0, 3)   # of the image, and its classes
RANDOM = np.random.default_rng(0)
MAPS = RANDOM.random((4, 6, 10)).astype(np.float32)   # of all classes
OWN = MAPS[list(LABELS)]


def names(path=None):
    return class_names(CLASSES, path, "imported.classes=x.yaml")


PLAIN = Values()


def read(folder, *, values=PLAIN, labels=LABELS, size=SIZE, classes=None, **layout):
    """The maps of the image `a`, after a check of the headers, as the step reads them."""
    layout = Layout(names(classes), **layout)
    files = find_files(folder, ["a"], layout.names)["a"]
    assert check_headers(files, layout, size, labels, CLASSES) != (b"'|O'" in files[0].path.read_bytes()[:128])   # pickled
    return maps_of(read_arrays(files), layout, values, size, labels, CLASSES)


def stated(tmp_path, text):
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    return path


def grey(path, array):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(array).save(path)


# What the projects write.

def test_clip_es_and_weclip(tmp_path):
    """generate_cams_voc12.py of both: `keys`, 0-based in the order of the objects, and float16 maps in the size of the image."""
    maps = RANDOM.random((2, *SIZE)).astype(np.float16)
    np.save(tmp_path / "a.npy", {"keys": np.array([3, 0]), "attn_highres": maps})
    assert np.array_equal(read(tmp_path), maps[::-1].astype(np.float32))


def test_weclip_scores(tmp_path):
    """test_msc_flip_voc.py: scores (1, C + 1, h, w) of the background and all classes, on a grid of their own."""
    scores = RANDOM.normal(0, 4, (1, 5, 6, 10)).astype(np.float32)
    np.save(tmp_path / "a.npy", {"segs": scores + 1, "msc_segs": scores})
    exponents = np.exp(scores[0].astype(np.float64))
    expected = exponents / exponents.sum(0)
    np.testing.assert_allclose(read(tmp_path, values=Values(Activation.softmax)), expected[[1, 4]], atol=1e-6)
    exponents = np.exp(scores[0] + 1.0)
    np.testing.assert_allclose(read(tmp_path, values=Values(Activation.softmax), key="segs"), expected[[1, 4]], atol=1e-6)
    with pytest.raises(DataError, match="its numbers are from -.* expected 0 to 1: state imported.range=\\[LEAST,GREATEST\\], or .* imported.activation"):
        read(tmp_path)


def test_mctformer_plus(tmp_path):
    """engine.py: a dictionary of maps by class, 0-based; images without a class have no file."""
    np.save(tmp_path / "a.npy", {0: MAPS[0], 3: MAPS[3]})
    assert np.array_equal(read(tmp_path), OWN)
    np.save(tmp_path / "a.npy", {np.int64(3): MAPS[3], np.int64(0): MAPS[0]})
    assert np.array_equal(read(tmp_path), OWN)


def test_official_dictionary_of_another_size(tmp_path):
    np.save(tmp_path / "a.npy", {"keys": np.array(LABELS), "cam": MAPS[:2, :3, :3], "high_res": OWN})
    assert np.array_equal(read(tmp_path), OWN)


# Further forms.

@pytest.mark.parametrize("array", [OWN, MAPS, np.concatenate([MAPS[:1], MAPS]), MAPS[None]], ids=["own", "all", "background", "batch"])
def test_plain_arrays(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(read(tmp_path), OWN)


def test_one_map_of_an_image_with_one_class(tmp_path):
    np.save(tmp_path / "a.npy", MAPS[2])
    assert np.array_equal(read(tmp_path, labels=(2,)), MAPS[2:3])
    with pytest.raises(DataError, match=r"has 1 maps; expected 2, those of the classes of the image in their order \(aeroplane, person\), or 4"):
        read(tmp_path)


def test_archives(tmp_path):
    np.savez(tmp_path / "a.npz", person=MAPS[3], aeroplane=MAPS[0])
    assert np.array_equal(read(tmp_path), OWN)
    np.savez(tmp_path / "a.npz", **{"3": MAPS[3], "0": MAPS[0]})
    assert np.array_equal(read(tmp_path), OWN)
    np.savez_compressed(tmp_path / "a.npz", **{name: MAPS[i] for i, name in enumerate(["aeroplane", "a%2Fb", "cat", "person"])})
    assert np.array_equal(read(tmp_path), OWN)
    np.savez(tmp_path / "a.npz", MAPS)
    assert np.array_equal(read(tmp_path), OWN)
    np.savez(tmp_path / "a.npz", keys=np.array(["person", "aeroplane"]), cam=OWN[::-1])
    assert np.array_equal(read(tmp_path), OWN)
    np.savez(tmp_path / "a.npz", features=OWN[:, :2], mine=OWN)
    assert np.array_equal(read(tmp_path, key="mine"), OWN)
    with pytest.raises(DataError, match="it has the arrays features, mine, whose names are no classes of the data set; state the one .* by imported.key=NAME"):
        read(tmp_path)
    with pytest.raises(DataError, match="it has no array 'mien'; did you mean 'mine'.* expected one of features, mine"):
        read(tmp_path, key="mien")


@pytest.mark.parametrize("name", ["{id}_{token}.png", "{id}/{token}.png", "{token}/{id}.png"])
def test_pictures_of_each_class(tmp_path, name):
    for token, index in (("aeroplane", 0), ("3", 3)):
        grey(tmp_path / name.format(id="a", token=token), np.round(MAPS[index] * 255).astype(np.uint8))
    np.testing.assert_allclose(read(tmp_path), OWN, atol=1 / 500)
    grey(tmp_path / name.format(id="a", token="3"), np.round(MAPS[3] * 65535).astype(np.uint16))
    np.testing.assert_allclose(read(tmp_path)[1], MAPS[3], atol=1e-5)
    grey(tmp_path / name.format(id="a", token="cat"), np.zeros((6, 10), np.uint8))
    with pytest.raises(DataError, match="it has maps of cat, which the labels of the image lack"):
        read(tmp_path)
    grey(tmp_path / name.format(id="a", token="cat"), np.zeros((6, 10, 3), np.uint8))
    with pytest.raises(DataError, match="has the channels RGB; expected a grey PNG of 8 or 16 bits"):
        read(tmp_path)


def test_a_picture_alone_and_ids_with_the_sign_between(tmp_path):
    grey(tmp_path / "a.png", np.full((6, 10), 51, np.uint8))
    assert np.allclose(read(tmp_path, labels=(1,)), 0.2)
    for name in ("a_1_cat.png", "a_1_2_cat.png", "a_1_nothing.png", "deep/a_1/cat.png"):
        grey(tmp_path / name, np.zeros((2, 2), np.uint8))
    found = find_files(tmp_path, ["a_1", "deep/a_1", "a_1_2", "b"], names())
    assert {i: [file.path.relative_to(tmp_path).as_posix() for file in files] for i, files in found.items()} == {
        "a_1": ["a_1_cat.png"], "deep/a_1": ["deep/a_1/cat.png"], "a_1_2": ["a_1_2_cat.png"]}


# Grids.

@pytest.mark.parametrize("layout", [{"grid": (6, 10)}, {"patch": 2}], ids=["grid", "patch"])
@pytest.mark.parametrize("token", [0, 1], ids=["patches", "class token"])
def test_flat_patches(tmp_path, layout, token):
    flat = np.pad(MAPS.reshape(4, -1), ((0, 0), (token, 0)))
    np.save(tmp_path / "a.npy", flat)
    assert np.array_equal(read(tmp_path, **layout), OWN)
    np.save(tmp_path / "a.npy", flat[None])
    assert np.array_equal(read(tmp_path, **layout), OWN)
    np.save(tmp_path / "a.npy", {0: flat[0], 3: flat[3]})
    assert np.array_equal(read(tmp_path, **layout), OWN)
    np.save(tmp_path / "a.npy", flat[:, 2:])
    with pytest.raises(DataError, match=r"the array has the shape \(4, 5[89]\); expected 60 values for each map, a grid 6 high and 10 wide"):
        read(tmp_path, **layout)


def test_the_last_patch_is_incomplete(tmp_path):
    np.save(tmp_path / "a.npy", RANDOM.random((2, 3 * 4)))
    assert read(tmp_path, patch=5, size=(11, 20)).shape == (2, 3, 4)


@pytest.mark.parametrize(("array", "message"), [
    (np.zeros((2, 20, 12)), "the array is 20 high and 12 wide, but its image is 12 high and 20 wide: height and width are exchanged"),
    (np.zeros((3, 6, 10)), r"it has 3 maps; expected 2, .*\(aeroplane, person\), or 4, those of all classes, or 5, background first: state .* imported.classes=FILE"),
    (np.zeros(60), r"the array has the shape \(60,\); expected maps \(K, height, width\), or flat ones with imported.grid or imported.patch"),
    ({0: MAPS[0]}, "it lacks the maps of person; its maps are of aeroplane. Make them, or correct the labels"),
    ({0: MAPS[0], 3: MAPS[3], 2: MAPS[2]}, "it has maps of cat, which the labels of the image lack"),
    ({0: MAPS[0], 3: MAPS[3], 4: MAPS[2]}, r"it has maps of 4, which are no classes of the data set \(numbers count from 0 to 3\)"),
    ({0: MAPS[0], 3: MAPS[3, :3]}, "the maps have several sizes .3 high and 10 wide, 6 high and 10 wide.; expected one for an image"),
    ({"keys": np.array([0, 3, 1]), "cam": OWN}, "the array 'cam' has 2 maps, but keys has 3; expected one for each"),
    (np.where(OWN > 0.9, np.nan, OWN), "it holds NaN or infinite numbers; expected finite ones: compute these maps again"),
    (np.round(OWN / OWN.max() * 255).astype(np.uint8), "its numbers are from .* to 255; expected 0 to 1: state imported.range"),
], ids=range(10))
def test_what_is_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_damaged_files_are_told(tmp_path):
    for name, message in (("a.npy", "damaged or no .npy file"), ("a.npz", "damaged or no .npz file"), ("a.png", "damaged or no PNG")):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(DataError, match=message):
            read(tmp_path, labels=(0,))
        (tmp_path / name).unlink()
    np.savez(tmp_path / "a.npz", cat=np.array([{}], object))
    with pytest.raises(DataError, match="its array cat.npy is pickled; expected plain numbers"):
        read(tmp_path)


# Ranges and activations.

@pytest.mark.parametrize(("values", "array", "expected"), [
    (Values(span=(0, 255)), OWN * 255, OWN), (Values(span=(-1, 3)), OWN * 4 - 1, OWN), (Values(Activation.relu), OWN * 9 - 4, None),
    (Values(Activation.sigmoid), np.log(OWN / (1 - OWN)), OWN), (Values(Activation.sigmoid, (0.5, 1)), np.abs(OWN), None)],
    ids=["bytes", "span", "relu", "sigmoid", "sigmoid from a half"])
def test_ranges(tmp_path, values, array, expected):
    np.save(tmp_path / "a.npy", array.astype(np.float32))
    found = read(tmp_path, values=values)
    if expected is None:
        expected = np.maximum(array, 0) if values.span is None else 2 / (1 + np.exp(-array)) - 1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_scores_are_kept_where_exponentials_overflow(tmp_path):
    np.save(tmp_path / "a.npy", MAPS * 4000 - 2000)
    for activation in (Activation.sigmoid, Activation.softmax):
        assert np.isfinite(read(tmp_path, values=Values(activation))).all()
    np.save(tmp_path / "a.npy", OWN)
    with pytest.raises(DataError, match="it holds the scores of some classes; expected those of all of them for imported.activation=softmax"):
        read(tmp_path, values=Values(Activation.softmax))


# Classes.

def test_stated_classes(tmp_path):
    np.save(tmp_path / "a.npy", MAPS[[2, 3, 0]])   # no channel of a/b
    assert np.array_equal(read(tmp_path, classes=stated(tmp_path, "[cat, person, aeroplane]")), OWN)
    np.save(tmp_path / "a.npy", np.concatenate([MAPS[1:2], MAPS, MAPS]))
    path = stated(tmp_path, "[background, aeroplane, a/b, cat, person, null, null, null, null]")
    assert np.array_equal(read(tmp_path, classes=path), OWN)
    np.save(tmp_path / "a.npy", np.concatenate([MAPS[1:2], MAPS]))
    assert np.array_equal(read(tmp_path, classes=stated(tmp_path, "{1: aeroplane, 2: a/b, 4: person}")), OWN)
    np.save(tmp_path / "a.npy", {1: MAPS[0], 4: MAPS[3]})
    assert np.array_equal(read(tmp_path, classes=stated(tmp_path, "{1: aeroplane, 2: a/b, 3: cat, 4: person}")), OWN)
    np.savez(tmp_path / "b.npz", plane=MAPS[0], human=MAPS[3], sky=MAPS[1])
    (tmp_path / "a.npy").unlink()
    (tmp_path / "b.npz").rename(tmp_path / "a.npz")
    assert np.array_equal(read(tmp_path, classes=stated(tmp_path, "{plane: aeroplane, human: person, sky: null}")), OWN)
    (tmp_path / "a.npz").unlink()
    np.save(tmp_path / "a.npy", MAPS[:2])
    with pytest.raises(DataError, match="the stated classes lack person, which the image has; name the channel of each"):
        read(tmp_path, classes=stated(tmp_path, "[aeroplane, cat]"))


def test_classes_that_cannot_be_used(tmp_path):
    for text, message in (("[dog, cat]", "x.yaml names the class 'dog' for 0; expected a class of the data set .aeroplane, a/b, cat, person"),
                          ("[person, caat]", "'caat' for 1; did you mean 'cat'"), ("{cat: [1]}", "names the class"),
                          ("", "holds no classes"), ("cat", "holds no classes"), ("[", "cannot be read")):
        with pytest.raises(ConfigError, match=message):
            names(stated(tmp_path, text))
    with pytest.raises(ConfigError, match="cannot be read .*No such file"):
        names(tmp_path / "none.yaml")


def test_a_class_with_a_number_for_a_name_is_found_by_its_name():
    own = class_names(("7", "0"), None, "")
    assert (own.find("7"), own.find("0"), own.find(0), own.find("1")) == (0, 1, 0, 1) and "2" not in own and "²" not in own
