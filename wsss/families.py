"""The families of methods. Each is a package; every module in it with a line `Method = ...` is a method that can be chosen.

A method is a dataclass that is both its settings and the object that works. Its settings have no defaults: the values and their
sources are in `conf/FAMILY/`. Such a module imports torch only inside functions, because plans read its settings.
"""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from inspect import isabstract
from pathlib import Path
from typing import Any, ClassVar

from wsss.data.messages import did_you_mean
from wsss.errors import ConfigError

# The key and the group of the configuration -> the package
FAMILIES = {"backbone": "wsss.networks.backbones", "classifier": "wsss.classifiers", "cam": "wsss.cams",
            "refiner": "wsss.refiners", "segmenter": "wsss.segmenters"}
_METHOD = re.compile(r"^Method\b.*=", re.MULTILINE)


@dataclass
class BaseMethod:
    """Base of the methods of all families. `method`: the name of the module; the class sets it."""

    method: str = field(init=False)

    own_files: ClassVar[bool] = False              # whether it reads files for each image of the data set, so works on no other
    unrecorded: ClassVar[Mapping[str, Any]] = {}   # settings that are not in `facts`, and their values when it is built again

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.method = cls.__module__.rpartition(".")[2]

    def remark(self) -> str:
        """What the plan says about the method with these settings; "" if nothing. It may import torch."""
        return ""

    @property
    def facts(self) -> dict[str, Any]:
        """The name of the method and its settings."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in self.unrecorded}


def method_files(family: str) -> dict[str, Path]:
    """The file of each method of a family, by the name of the module. Imports none of them."""
    folder = Path(next(iter(importlib.import_module(FAMILIES[family]).__path__)))
    return {path.stem: path for path in sorted(folder.glob("*.py")) if _METHOD.search(path.read_text(encoding="utf-8"))}


def load_method(family: str, name: str) -> type[Any]:
    """The `Method` of a module.

    Raises ConfigError, which names the file, if there is no such module, it cannot be imported, or `Method` is no such class.
    """
    files = method_files(family)
    if name not in files:
        raise ConfigError(f"{family}: there is no method {name!r}{did_you_mean(name, files)} (in {FAMILIES[family]}: "
                          f"{', '.join(files)})")
    try:
        method = importlib.import_module(f"{FAMILIES[family]}.{name}").Method
    except Exception as error:   # whatever a file can raise
        raise ConfigError(f"{family}: {files[name]} cannot be imported ({type(error).__name__}: {error}). Correct the file, or "
                          f"choose another method by {family}=NAME") from error
    is_class = isinstance(method, type) and issubclass(method, BaseMethod) and not isabstract(method)
    if not is_class or method.__module__ != f"{FAMILIES[family]}.{name}":
        raise ConfigError(f"{family}: Method in {files[name]} is {method!r}, expected a dataclass of that file with all "
                          f"functions of the base class in {FAMILIES[family]}.method")
    return method


def from_facts(family: str, facts: Mapping[str, Any]) -> Any:
    """The method of `BaseMethod.facts`.

    Raises ConfigError as `load_method`, and TypeError if the method does not have these settings.
    """
    settings = dict(facts)
    method = load_method(family, settings.pop("method"))
    return method(**{**method.unrecorded, **settings})


def found(family: str) -> dict[str, type[Any]]:
    """The methods of a family by name, without those whose file cannot be used: `load_method` says why."""
    methods: dict[str, type[Any]] = {}
    for name in method_files(family):
        try:
            methods[name] = load_method(family, name)
        except ConfigError:
            continue
    return methods
