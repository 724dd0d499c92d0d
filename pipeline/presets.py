"""The files of `conf/FAMILY/`, from which a method of a family is chosen. Composes no configuration."""

from functools import lru_cache
from pathlib import Path

import yaml

from wsss.errors import ConfigError
from wsss.families import load_method

CONF = Path(__file__).resolve().parent.parent / "conf"


def presets(family: str) -> dict[str, str]:
    """The names of the files of a family, each with the title of what its method makes (`titled` of the class). The title of a
    file that cannot be used is its name: an error only where it is chosen."""
    return _titles(family, tuple((path.stem, path.stat().st_mtime_ns) for path in sorted((CONF / family).glob("*.yaml"))))


@lru_cache
def _titles(family: str, files: tuple[tuple[str, int], ...]) -> dict[str, str]:
    """`presets`, once as long as the files are the same."""
    found: dict[str, str] = {}
    for name, _ in files:
        try:
            found[name] = load_method(family, _method(family, name)).titled(name)
        except (ConfigError, OSError, yaml.YAMLError, StopIteration, TypeError, KeyError, RecursionError):
            found[name] = name
    return found


def _method(family: str, name: str) -> str:
    """The name of the method of a file: in the first of its defaults, or in the file that this names."""
    first = yaml.safe_load((CONF / family / f"{name}.yaml").read_text(encoding="utf-8"))["defaults"][0]
    return _method(family, first.partition("@")[0]) if isinstance(first, str) else next(iter(first.values()))
