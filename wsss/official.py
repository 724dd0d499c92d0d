"""Files of the official IRN and LPCAM code: pickled dictionaries of maps, and the parameter names of its networks.

The maps are `.npy` files that hold a pickled dictionary. Unpickling may run any code, so the reader here accepts only NumPy
arrays and torch tensors: any other reference in a file is refused by name and never called.
"""

import io
import pickle
import pickletools
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wsss.errors import DataError
from wsss.files import replacing
from wsss.networks.checkpoints import load
from wsss.reading import open_regular

_NEW_ARRAY: Any = np.zeros(0).__reduce__()[0]                # numpy._core.multiarray._reconstruct, numpy.core... before 2.0
_SCALAR = np.float32(0).__reduce__()[0]
# Module and name in a pickle -> what is called instead. Old files (protocol 2) store bytes as Latin-1 text.
_KNOWN: dict[str, Any] = {
    "multiarray _reconstruct": lambda kind, shape, code: _NEW_ARRAY(np.ndarray, (0,), b"b"),
    "multiarray scalar": _SCALAR,
    "numpy ndarray": None,                              # only an argument of _reconstruct
    "numpy dtype": lambda *arguments: _numpy_dtype(*arguments),
    "_codecs encode": lambda text, code: text.encode("latin1"),
    "collections OrderedDict": lambda: OrderedDict(),
    "torch._utils _rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch.storage _load_from_bytes": lambda content: load(io.BytesIO(content), "a tensor"),
}
PROTOTYPE_FILES = ("class_ceneters.pt", "class_context.pt")   # spelled as in step/make_lpcam.py


class OfficialMaps(NamedTuple):
    """One file of `cam_mask/` or `lpcam_mask/` (step/make_cam.py, step/make_lpcam.py), or of AMN's `amn_cam/`
    (step/make_amn_cam.py), whose maps have the background before the K classes."""

    keys: np.ndarray       # (K,) int64, 0-based classes
    cam: np.ndarray        # (K, ceil(H / 4), ceil(W / 4)) float32
    high_res: np.ndarray   # (K, H, W) float32


_Slow: Any = pickle._Unpickler   # that in C allocates what a file asks for, and looks at no key


class _Reader(_Slow):
    """Unpickles arrays and tensors only. It returns a new function each time, so that no file can modify a shared one."""

    dispatch = dict(_Slow.dispatch)

    def __init__(self, file: BinaryIO, path: Path | str):
        content = file.read()
        deque(pickletools.genops(content), 0)   # refuses lengths that are not there
        super().__init__(io.BytesIO(content))
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        known = f"{re.sub(r'^numpy[.](_core|core)[.]', '', module)} {name}"
        if known not in _KNOWN:
            raise _stranger(self.path, f"{module}.{name}")
        call = _KNOWN[known]
        return call and (lambda *arguments: call(*arguments))


    def _refuse_keys(self, keys: list[Any]) -> None:
        """The hash of a tuple of tuples may take for ever."""
        if wrong := [key for key in keys if not isinstance(key, (str, int, float, np.generic))]:
            raise _stranger(self.path, f"a key that is a {type(wrong[0]).__name__}")

    def load_setitem(self) -> None:
        self._refuse_keys(self.stack[-2:-1])
        super().load_setitem()
    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        self._refuse_keys(self.stack[::2])
        super().load_setitems()
    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        self._refuse_keys(self.stack[::2])
        super().load_dict()
    dispatch[pickle.DICT[0]] = load_dict


def _numpy_dtype(name: Any, *_: Any) -> np.dtype:
    if not isinstance(name, str):   # the message of NumPy would show what it is, which may be without end
        raise DataError(f"a type of numbers is a {type(name).__name__}; expected its name: recreate the file with the official "
                        "code")
    return np.dtype(name)


class _Writer(pickle.Pickler):
    """Writes pickles that NumPy before 1.26, which the official code uses, can read too: there numpy._core is numpy.core."""

    @classmethod
    def bytes_of(cls, array: np.ndarray) -> bytes:
        content = io.BytesIO()
        cls(content, protocol=3).dump(array)   # the last protocol that names a module in a line of its own
        return content.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def _stranger(path: Path | str, name: str) -> DataError:
    return DataError(f"{path} refers to {name}; expected NumPy arrays and torch tensors only. Nothing in it was run. "
                     "Recreate it with the official code, or leave it out")


def read_dictionary(path: Path | str) -> dict[Any, Any]:
    """The dictionary in a `.npy` file of `np.save(path, {...})`; tensors become arrays.

    Raises DataError if it cannot be read, holds no dictionary, or refers to anything but NumPy arrays and torch tensors;
    the message names the reference, which is not called.
    """
    try:
        with open_regular(path) as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            content = _Reader(file, path).load() if header(file)[2].hasobject else None
        value = content.item() if isinstance(content, np.ndarray) and content.shape == () else None
        if isinstance(value, dict):
            return {key: item.detach().cpu().numpy() if isinstance(item, Tensor) else item for key, item in value.items()}
    except (DataError, MemoryError):
        raise
    except Exception as error:   # a damaged pickle can raise anything
        why = " ".join(str(error).split())[:200]
        if inside := re.search(r"GLOBAL (\S+)", str(error)):   # torch's safe reader found it in the bytes of a tensor
            raise _stranger(path, inside[1]) from error
        raise DataError(f"{path} is damaged or not a .npy file ({type(error).__name__}: {why}). Copy it again, or leave it "
                        "out") from error
    raise DataError(f"{path} holds no dictionary; expected one with keys, cam and high_res, as in files of official make_cam. "
                    "Leave it out")


def read_maps(path: Path | str, size: tuple[int, int], classes: tuple[int, ...], background: bool = False) -> OfficialMaps:
    """The official maps of an image of `size` (H, W) with the present `classes` (0-based), in the order of `classes`.

    `background`: the first map is that of the background (AMN); of an image without classes it is 0, because it has no maps.
    A map that is NaN everywhere becomes 0: official make_lpcam divides an all-zero map by its maximum.
    Raises DataError, naming the file, for invalid classes, shapes or values.
    """
    return official_maps(read_dictionary(path), path, size, classes, background)


def has_official_sizes(found: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Whether a dictionary has both maps of the official code in the sizes of an image (H, W)."""
    return _array(found, "keys").shape != () and all(_array(found, name).shape[-2:] == shape
                                                     for name, shape in _sizes(size).items())


def _sizes(size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    return {"cam": ((size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1), "high_res": size}


def official_maps(found: Mapping[str, Any], path: Path | str, size: tuple[int, int], classes: tuple[int, ...],
                  background: bool = False) -> OfficialMaps:
    """The maps in a dictionary of `read_dictionary`, as `read_maps`."""
    keys = _array(found, "keys").ravel().tolist()
    if Counter(keys) != Counter(classes):
        raise DataError(f"{path} holds maps of the classes {keys} (0-based), the labels of the image are {list(classes)}. Use "
                        "maps of this data set, or correct the labels")
    order, maps = [*[0] * background, *(keys.index(c) + background for c in classes)], {}
    for name, (h, w) in _sizes(size).items():
        array = _array(found, name) if classes else np.zeros((int(background), h, w))
        if array.shape != (background + len(classes), h, w) or array.dtype.kind != "f":
            raise DataError(f"{path}: {name} is {array.dtype} {array.shape}, expected real numbers "
                            f"{(background + len(classes), h, w)} for an image {size[0]} high and {size[1]} wide. Use the maps "
                            "of this image")
        array = array[order].astype(np.float32)
        array[np.isnan(array).all(axis=(1, 2))] = 0
        if not np.isfinite(array).all() or array.max(initial=0) > 1 + 1e-3:
            raise DataError(f"{path}: {name} holds numbers that are above 1 or not finite, expected maps divided by their "
                            "maximum. Recreate it, or leave it out")
        maps[name] = np.minimum(array, 1)
    return OfficialMaps(np.array(classes, np.int64), **maps)


def _array(found: Mapping[str, Any], name: str) -> np.ndarray:
    return found[name] if isinstance(found.get(name), np.ndarray) and found[name].dtype != object else np.array(None)


def write_maps(path: Path | str, maps: OfficialMaps, lpcam: bool = False) -> None:
    """Write maps as the official code does, completely or not at all.

    make_cam stores `keys` and `cam` as tensors and `high_res` as an array; make_lpcam (`lpcam`) stores `keys` as an array and
    both maps as tensors. Later official steps expect these types (make_sem_seg_labels calls `.cuda()` on `cam`). make_amn_cam, as
    make_cam, but of an image without classes only `keys`.
    """
    keys, cam, high_res = maps
    content = {"keys": keys if lpcam else torch.from_numpy(keys), "cam": torch.from_numpy(cam),
               "high_res": torch.from_numpy(high_res) if lpcam else high_res}
    if not len(keys) and len(cam):   # AMN's, with the background alone
        content = {"keys": content["keys"]}
    write_dictionary(path, content)


def write_dictionary(path: Path | str, content: Mapping[Any, Any]) -> None:
    """Write a dictionary of arrays and tensors as `np.save` does, completely or not at all, for NumPy before 1.26 too."""
    array = np.array(content, dtype=object)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(_Writer.bytes_of(array))


def write_label(path: Path | str, label: np.ndarray) -> None:
    """Write a label (H, W) uint8 as a grey PNG, completely or not at all: the official code reads it with imageio, which would
    convert a palette PNG to colours."""
    with replacing(path) as temporary:
        Image.fromarray(label).save(temporary, format="PNG")


def read_prototypes(folder: Path) -> dict[str, np.ndarray]:
    """The prototypes that official make_lpcam saves in `folder`: a dictionary class -> (n, D) in each of PROTOTYPE_FILES.

    Returns `center` (n, D) float32, `class_index` (n,) int64, `is_background` (n,) bool, and `kept` (n,), all True. Raises
    DataError if a file is missing, damaged or of other content.
    """
    rows: list[tuple[int, bool, np.ndarray]] = []
    for name, is_background in zip(PROTOTYPE_FILES, (False, True), strict=True):
        try:
            with open_regular(folder / name) as file:
                found = load(file, folder / name)
            rows += [(int(index), is_background, centers.detach().float().numpy()) for index, centers in found.items()]
            center = np.concatenate([centers for _, _, centers in rows])   # refuses other dimensions
            _, _ = center.shape
        except MemoryError:
            raise
        except Exception as error:   # a damaged pickle can raise anything
            raise DataError(f"{folder / name} is damaged, or not a dictionary of prototypes by class ({type(error).__name__}). "
                            "Recreate it with the official code") from error
    counts = [len(centers) for _, _, centers in rows]
    return {"center": center, "class_index": np.repeat([index for index, _, _ in rows], counts),
            "is_background": np.repeat([is_background for _, is_background, _ in rows], counts),
            "kept": np.ones(len(center), bool)}
