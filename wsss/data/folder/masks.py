"""The mask files of a folder: numbers or colours, looked up in a table where there is one. Nothing is written."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsss.data.dataset import digest_file
from wsss.data.folder.classes import BACKGROUND, IGNORED, check_classes
from wsss.data.ids import Names, read_lines
from wsss.data.images import image_size, read_numbers
from wsss.data.messages import MAX_REPORTED, did_you_mean, refuse
from wsss.errors import DataError
from wsss.palette import IGNORE

log = logging.getLogger(__name__)

LABELMAP = "labelmap.txt"   # CVAT's, taken without being named
# A name, then a colour, after which CVAT's table has more columns, or a number. A name may end in a number: "class 3:128,0,0::".
_ROW = re.compile(r"(.+?)[\s,;:]+(?:(#[0-9a-fA-F]{6}|[0-9]{1,9}[\s,;]+[0-9]{1,9}[\s,;]+[0-9]{1,9})(?::.*)?|([0-9]{1,9}))")
_MOST = 1000   # characters of a line of a table


@dataclass(frozen=True)
class Colours:
    """A table of what stands in masks: `rows` (name, number or red, green and blue), in the order of the file."""

    path: Path
    rows: tuple[tuple[str, int | tuple[int, int, int]], ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names without background and what is not scored."""
        return tuple(dict.fromkeys(name for name, _ in self.rows if name.lower() not in BACKGROUND | IGNORED))

    def values(self, classes: tuple[str, ...]) -> dict[int, int]:
        """Number, or colour as 65536 red + 256 green + blue, -> mask value. Raises DataError for a name of no class."""
        refuse(f"colour table {self.path}", [f"{name!r} is no class{did_you_mean(name, classes)}; expected one of the class "
                                             "list, background or ignore" for name in self.classes if name not in classes])
        return {_code(key): 0 if name.lower() in BACKGROUND else IGNORE if name.lower() in IGNORED else classes.index(name) + 1
                for name, key in self.rows}

    @property
    def of_colours(self) -> bool:
        return isinstance(self.rows[0][1], tuple)


def _code(key: int | tuple[int, int, int]) -> int:
    return key if isinstance(key, int) else 65536 * key[0] + 256 * key[1] + key[2]


def _rgb(code: int) -> str:
    return f"{code >> 16},{code >> 8 & 255},{code & 255}"


def read_colours(path: Path) -> Colours:
    """Read a table with a line `NAME RED GREEN BLUE`, `NAME #rrggbb` or `NAME NUMBER` for each class, separated by commas, blanks
    or colons (CVAT's labelmap.txt). Raises DataError for other lines."""
    rows, problems = [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not line or line.startswith("#"):
            continue
        match = _ROW.fullmatch(line) if len(line) <= _MOST else None   # the time for a line grows with its square
        if not match:
            problems.append(f"line {number} is {line[:60]!r}; expected NAME,RED,GREEN,BLUE or NAME,NUMBER")
            continue
        word = match[2] or match[3]
        numbers = [int(part) for part in re.findall(r"[0-9]+", word)] if word[0] != "#" else list(bytes.fromhex(word[1:]))
        if max(numbers) > (255 if len(numbers) == 3 else 65535):
            problems.append(f"line {number}: {word!r} is too large; expected colours of 0 to 255, or a number up to 65535")
        rows.append((match[1].strip(), (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else numbers[0]))
    if not problems and not rows:
        problems.append("there is no line; expected NAME,RED,GREEN,BLUE or NAME,NUMBER for each class")
    if len({type(key) for _, key in rows}) > 1:
        problems.append("some lines have a number and some a colour; expected the same for all")
    refuse(f"colour table {path}", problems)
    table = Colours(path, tuple(rows))
    check_classes(table.classes, path)
    return table


@dataclass(frozen=True)
class FileMasks:
    """The masks of a folder as the `MaskSource` of its data set. A file of "" is a mask without any class.

    `table`: number or colour -> mask value; empty: the numbers in the files are mask values.
    """

    root: Path
    files: Mapping[str, str]
    images: Mapping[str, str]
    table: Mapping[int, int]
    of_colours: bool
    max_pixels: int | None = None   # of a mask, as of an image

    def read(self, image_id: str) -> np.ndarray:
        """(H, W) uint8. Raises DataError for colours or numbers that are not in the table, and colours without one."""
        if not self.files[image_id]:
            return np.zeros(image_size(self.root / self.images[image_id]), np.uint8)
        path = self.root / self.files[image_id]
        numbers = self.numbers(image_id)
        if self.table:
            found, where = np.unique(numbers, return_inverse=True)
            if unknown := [int(code) for code in found if int(code) not in self.table]:
                shown = ", ".join(self.shown(code) for code in unknown[:MAX_REPORTED])
                raise DataError(f"mask {path} holds {shown}, not in the colour table; expected only its colours and numbers: add "
                                "a line, with the name ignore for what is not scored")
            return np.array([self.table[int(code)] for code in found], np.uint8)[where].reshape(numbers.shape)
        if (highest := int(numbers.max())) > IGNORE:
            raise DataError(f"mask {path} holds values up to {highest}; expected class numbers up to 254, or 255 (ignore). Are "
                            "they numbers of objects? Put these masks into instances/, or list the numbers of classes in a "
                            "table: data.colours=FILE")
        return numbers.astype(np.uint8)

    def numbers(self, image_id: str) -> np.ndarray:
        """(H, W) the numbers in a file, or its colours as 65536 red + 256 green + blue."""
        path = self.root / self.files[image_id]
        array = read_numbers(path, self.of_colours, self.max_pixels)
        if array.ndim == 2:
            return array
        codes = array.astype(np.int64) @ (65536, 256, 1)
        if not self.of_colours:
            shown = "; ".join(_rgb(code) for code in np.unique(codes)[:4].tolist())
            raise DataError(f"mask {path} holds colours ({shown}); expected class numbers, or a table of the colours with a line "
                            "NAME,RED,GREEN,BLUE for each class: write it and set data.colours=FILE")
        return codes

    def shown(self, code: int) -> str:
        return f"the colour {_rgb(code)}" if self.of_colours else f"the number {code}"

    def digest(self, image_id: str) -> str:
        if not self.files[image_id]:
            return "background"
        content = digest_file(self.root / self.files[image_id])
        if not self.table:
            return content   # as of a data set without a source, so that finished runs stay valid
        return hashlib.blake2b(f"{content} {sorted(self.table.items())}".encode(), digest_size=16).hexdigest()


def match_masks(found: Mapping[str, str], folder: Path, images: Mapping[str, str]) -> dict[str, str]:
    """id -> mask file, in the order of the images. Raises DataError if two masks are of one image."""
    names, unused, problems = Names(images), [], []
    masks: dict[str, str] = {}
    for file in found.values():
        below = file.split("/", folder.name.count("/") + 1)[-1].rpartition(".")[0]
        image_id = names.find(below)
        if image_id is None:
            unused.append(below)
        elif image_id in masks:
            problems.append(f"{masks[image_id]} and {file} are masks of one image; keep one")
        else:
            masks[image_id] = file
    refuse(f"masks {folder}", problems)
    if unused:
        log.warning("%s: %d masks have no image and are ignored, for example %s; give a mask the name of its image",
                    folder, len(unused), unused[0])
    return {image_id: masks[image_id] for image_id in images if image_id in masks}


def complete(masks: Mapping[str, str], lists: Mapping[str, tuple[str, ...]], labels: Mapping[str, tuple[int, ...]],
             where: Path) -> tuple[dict[str, str], int]:
    """The masks with those of the images without a class, which need no file, and the number of these.

    Raises DataError unless they cover all of train and val, or all of val alone: scores of half a list would mislead.
    """
    drawn = {name: [i for i in lists[name] if i in masks] for name in ("train", "val")}
    missing = {name: [i for i in lists[name] if i not in masks and labels[i]] for name in drawn}
    only_val = bool(lists["val"]) and not drawn["train"]
    if missing["val"] or (missing["train"] and not only_val):
        counts = ", ".join(f"{name} has {len(drawn[name])} of {len(lists[name])}" for name in drawn)
        example = (missing["val"] or missing["train"])[0]
        raise DataError(f"masks in {where} are incomplete: {counts}, for example {example}.png is missing; expected all of train "
                        "and val, or all of val and none of train, or no masks folder. Only an image without a class needs none")
    covered = [name for name in drawn if not (name == "train" and only_val)]
    empty = {i: "" for name in covered for i in lists[name] if i not in masks}
    others = {i: "" for i, present in labels.items() if not present and i not in masks and not only_val}
    return {**masks, **empty, **others}, len(empty)


def suggested_table(source: FileMasks, labels: Mapping[str, tuple[int, ...]], classes: tuple[str, ...]) -> str:
    """Lines for a table of the colours or numbers in some masks, by the classes of the images they are on."""
    with_colour: dict[int, Counter[int]] = {}
    images: Counter[int] = Counter()
    for image_id in [i for i, file in source.files.items() if file and i in labels][:_SAMPLED]:
        for code in np.unique(source.numbers(image_id)).tolist():
            images[code] += 1
            with_colour.setdefault(code, Counter()).update(labels[image_id])
    lines = []
    for code, count in images.most_common(_LINES):
        best = with_colour[code].most_common(1)
        # A colour of a class is on its images alone; background is on most, whatever their classes.
        certain = best and best[0][1] == count and not (code == 0 and len(images) > 1)
        name = classes[best[0][0]] if certain else "background" if code == 0 else "ignore"
        lines.append(f"{name},{_rgb(code) if source.of_colours else code}")
    return "\n    ".join(lines)


_SAMPLED, _LINES = 50, 20   # masks that are read, lines that are shown
