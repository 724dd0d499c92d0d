"""The class list of a folder: a text file, or YOLO's data.yaml."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from wsss.data.ids import read_lines
from wsss.data.messages import did_you_mean, refuse
from wsss.errors import DataError
from wsss.reading import read_yaml

BACKGROUND = frozenset({"background", "_background_", "bg"})
IGNORED = frozenset({"ignore", "__ignore__", "ignored", "void", "unlabeled", "unlabelled"})
_FILES = ("classes.txt", "labels.txt", "obj.names", "labels/classes.txt", "obj_train_data/classes.txt",
          "data.yaml", "dataset.yaml")
_MOST = 100_000   # classes; a file with more is something else


def find_classes(root: Path) -> tuple[tuple[str, ...] | None, str]:
    """The class list and the name of its file; None without one. Raises DataError for a list that is not possible."""
    for name in _FILES:
        if (root / name).exists():
            path = root / name
            names = _yaml_names(path) if path.suffix == ".yaml" else read_lines(path)
            while names and not names[-1]:
                names.pop()
            return check_classes(names, path), name
    return None, ""


def _yaml_names(path: Path) -> list[str]:
    try:
        names = read_yaml(path)["names"]
        items = [names[key] for key in sorted(names)] if isinstance(names, Mapping) else list(names or [])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} has no class list ({type(error).__name__}: {str(error)[:200]}); expected the key names with a "
                        "list, as YOLO writes: add it, or write classes.txt") from error
    return [str(name) for name in items]


def check_classes(names: Iterable[str], path: Path) -> tuple[str, ...]:
    """`names` in the order of mask values. Raises DataError for empty, repeated and reserved names."""
    names, problems = tuple(names), []
    if len(names) > _MOST:
        problems, names = [f"it has {len(names):,} lines; expected a class name on each, of at most {_MOST:,}"], ()
    first: dict[str, int] = {}
    for i, name in enumerate(names, start=1):
        if not name:
            problems.append(f"line {i} is empty; it would shift the mask values of the classes below it: remove or fill it")
        elif name.lower() in BACKGROUND:
            problems.append(f"line {i} is {name!r}; background is mask value 0 and is not listed: remove the line")
        elif name.lower() in IGNORED:
            problems.append(f"line {i} is {name!r}; what is not scored is mask value 255 and is no class: remove the line")
        elif ";" in name:
            problems.append(f"line {i}, {name!r}, holds ';', which separates classes in labels.csv: rename the class")
        elif first.setdefault(name, i) < i:
            problems.append(f"line {i} repeats {name!r} of line {first[name]}; rename one class")
    if not names and not problems:
        problems.append("it is empty; expected a class name on each line")
    refuse(f"classes {path}", problems)
    return names


def is_class(name: str) -> bool:
    """Whether a name of an annotation is one of a class, and not of background or of what is not scored."""
    return name.lower() not in BACKGROUND | IGNORED


def is_ignored(name: str) -> bool:
    """Whether it is a name of what is not scored: a region with it is 255 in a mask."""
    return name.lower() in IGNORED


def numbered(classes: tuple[str, ...] | None, names: Iterable[str], where: Path) -> tuple[str, ...]:
    """The class list: `classes`, of which all `names` must be, or without one the names in their order."""
    names = tuple(dict.fromkeys(names))
    if classes is None:
        return check_classes(names, where)
    refuse(f"classes of {where}", [f"class {name!r} is not in the class list{did_you_mean(name, classes) or ': add it'}"
                                   for name in names if name not in classes])
    return classes
