"""Image labels of a table: a line an image or an object, or a column of 0 and 1 a class."""

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsss.data.folder.found import Found
from wsss.data.ids import Names, read_lines, without_image
from wsss.data.messages import MAX_REPORTED, did_you_mean, refuse
from wsss.errors import DataError

log = logging.getLogger(__name__)

_NAME = ("name", "names", "filename", "file_name", "file", "image", "image_name", "image_id", "imageid", "img", "id", "path",
         "filepath", "image_path")
_CLASSES = ("classes", "class", "class_name", "label", "labels", "category", "categories", "tag", "tags")
_FLAGS = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "": False, "false": False, "no": False}
_SEPARATORS = ("|", ",", " ")   # besides the semicolon
_DIGITS = 10                    # of the number of a class
_MOST_COLUMNS = 10_000

_SHOWN = 200   # characters of a cell in a message

Row = tuple[int, list[str]]   # line number, cells


def _parse(path: Path, delimiter: str | None = ",") -> list[Row]:
    """The rows with a cell; `delimiter` None: the most frequent of comma, semicolon and tab in the first line."""
    lines = read_lines(path)
    if delimiter is None:
        first = next((line for line in lines if line), "")
        delimiter = max(",;\t", key=first.count)
    reader = csv.reader(lines, strict=True, delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; is a quotation mark not closed? Close or "
                        "remove it") from error
    width = len(rows[0][1]) if rows and delimiter == "\t" else 0   # `read_lines` removes tabs at the end
    return [(line, [*row, *[""] * (width - len(row))]) for line, row in rows]


def read_rows(path: Path) -> list[Row]:
    """(line number, fields) of every row after the header `name,classes` of a file that this package wrote."""
    rows = _parse(path)
    header = rows[0][1] if rows else []
    if header != ["name", "classes"]:
        raise DataError(f"{path} starts with {','.join(header)[:_SHOWN]!r}; expected the line 'name,classes'")
    return rows[1:]


def read_table(path: Path, classes: tuple[str, ...] | None, images: Mapping[str, str]) -> Found:
    """The labels in a table, for the ids of `images`, all of which must have a row.

    Columns are separated by commas, semicolons or tabs; several rows of one image are joined. `classes`: the class list; None:
    the columns, or all names in alphabetical order. Raises DataError for other tables, unknown images and unknown classes.
    """
    rows = _parse(path, None)
    names = Names(images)
    header = rows[0][1] if rows else []
    while header and not header[-1]:   # empty columns of a spreadsheet
        header.pop()
    words = [cell.lower() for cell in header]
    if rows and names.find(header[0]) is not None:
        header, words = ["name", "classes"], ["name", "classes"]   # no header
    else:
        rows = rows[1:]
    name_column = next((i for i, word in enumerate(words) if word in _NAME), None)
    if name_column is None or len(words) < 2:
        raise DataError(f"{path} starts with {','.join(header)[:_SHOWN]!r}; expected the line 'name,classes', or 'name' and a "
                        "column of 0 and 1 for each class: add this line")
    class_column = next((i for i, word in enumerate(words) if word in _CLASSES and i != name_column), None)
    if class_column is None:
        return _one_hot(path, rows, header, name_column, classes, names)
    return _listed(path, rows, (name_column, class_column, len(header)), classes, names)


def _join(path: Path, rows: Sequence[tuple[int, str, set[int]]], names: Names, problems: list[str]) -> dict[str, tuple[int, ...]]:
    """id -> classes of all its rows, in the order of the images; raises the problems."""
    found: dict[str, set[int]] = {}
    repeated = 0
    for line, name, present in rows:
        image_id = names.find(name)
        if image_id is None:
            problems.append(f"line {line}: {without_image(name, names)}")
            continue
        repeated += image_id in found
        found.setdefault(image_id, set()).update(present)
    problems += [f"{file} has no row; write '{image_id},' if it shows no class"
                 for image_id, file in names.files.items() if image_id not in found]
    refuse(f"labels {path}", problems)
    if repeated:
        log.info("%s: %d further rows of the same images; the classes of their rows are joined", path, repeated)
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}   # one tuple for all images of equal labels
    return {i: shared.setdefault(present, present) for i in names.files for present in [tuple(sorted(found[i]))]}


def _one_hot(path: Path, rows: Sequence[Row], header: Sequence[str], name_column: int, classes: tuple[str, ...] | None,
             names: Names) -> Found:
    if len(header) > _MOST_COLUMNS:
        raise DataError(f"{path} has {len(header):,} columns; expected at most {_MOST_COLUMNS:,}, one for each class: is it the "
                        "file that was meant?")
    columns = [i for i in range(len(header)) if i != name_column]
    listed = classes or tuple(header[i] for i in columns)
    problems = [f"column {header[i]!r} is no class of the class list{did_you_mean(header[i], listed)}"
                for i in columns if header[i] not in listed]
    problems += [f"class {name!r} of the class list has no column" for name in listed if name not in header]
    read = []
    for line, row in rows:
        cells = [row[i].lower() if i < len(row) else "" for i in columns]
        if wrong := [(header[i], cell) for i, cell in zip(columns, cells) if cell not in _FLAGS]:
            problems.append(f"line {line}: {wrong[0][1]!r} in column {wrong[0][0]!r}; expected 0 or 1 in the column of a class")
        read.append((line, row[name_column] if name_column < len(row) else "",
                     {listed.index(header[i]) for i, cell in zip(columns, cells) if _FLAGS.get(cell) and header[i] in listed}))
    return Found(f"{path.name} (a column of 0 and 1 per class)", listed, _join(path, read, names, problems))


def _listed(path: Path, rows: Sequence[Row], at: tuple[int, int, int], classes: tuple[str, ...] | None, names: Names) -> Found:
    """Rows of a name and its classes; `at`: the columns of both, and the number of columns."""
    name_column, class_column, width = at
    cells, problems = [], []
    for line, row in rows:
        if len(row) <= max(name_column, class_column):
            problems.append(f"line {line}, {','.join(row)[:_SHOWN]!r}, has {len(row)} fields; expected NAME,cat;dog (no class: "
                            "NAME,)")
            continue
        further = row[width:] if class_column == width - 1 else []   # classes that are separated as the columns are
        cells.append((line, row[name_column], [cell for cell in (row[class_column], *further) if cell]))
    named = {name for _, _, row in cells for cell in row for name in re.split(r"\s*[;|]\s*", cell) if name}
    listed = classes or tuple(sorted(named))
    words = _Words(path, listed)
    read = [(line, name, words.classes(line, row, problems)) for line, name, row in cells]
    labels = _join(path, read, names, problems)
    if any(len(row) > 1 for _, _, row in cells):
        words.warn("further columns of a row are read as further classes", kind="columns")
    return Found(f"{path.name} (classes of each name)", listed, labels)


class _Words:
    """The classes that a cell of `path` names. What was taken for a name is told once."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        self.path, self.classes_ = path, classes
        self.index = {name: i for i, name in enumerate(classes)}
        self.folded = {name.casefold(): i for i, name in enumerate(classes)}
        self.told: set[str] = set()   # one of a kind

    def warn(self, message: str, *, kind: str) -> None:
        if kind not in self.told:
            self.told.add(kind)
            log.warning("%s: %s", self.path, message)

    def classes(self, line: int, cells: Sequence[str], problems: list[str]) -> set[int]:
        found = set()
        for word in (word for cell in cells for word in self._split(cell)):
            number = self._class(word)
            if number is None:
                nearest = did_you_mean(word, self.index) if len(problems) < MAX_REPORTED else ""
                hint = nearest or "; expected one of the class list, separated by ';'"
                problems.append(f"line {line}: unknown class {word[:_SHOWN]!r}{hint}")
            else:
                found.add(number)
        return found

    def _split(self, cell: str) -> list[str]:
        return [part for word in cell.split(";") if word.strip() for part in self._apart(word.strip())]

    def _apart(self, word: str) -> list[str]:
        """The classes of a word that is none itself but has another separator; else the word."""
        for separator in _SEPARATORS if self._class(word) is None else ():
            parts = [part.strip() for part in word.split(separator) if part.strip()]
            if len(parts) > 1 and all(self._class(part) is not None for part in parts):
                self.warn(f"{word!r} and others like it are read as classes separated by {separator!r}", kind="separator")
                return parts
        return [word]

    def _class(self, word: str) -> int | None:
        if word in self.index:
            return self.index[word]
        if word.isdecimal() and len(word) < _DIGITS and 1 <= int(word) <= len(self.index):
            self.warn("numbers are read as the lines of the class list, which are the values in masks: 1 is "
                      f"{self.classes_[0]!r}", kind="number")
            return int(word) - 1
        if (number := self.folded.get(word.casefold())) is not None:
            self.warn(f"{word!r} and others like it are read as {self.classes_[number]!r}", kind="case")
        return number
