"""The actions (`action=NAME`), one file each. To add an action, add a file; there is no other list.

An action module has

    a docstring       its first line describes the action in `--help` and in the README
    Settings          optional: a dataclass of the action's own keys, without defaults; the values are in `conf/config.yaml`
    check(config)     optional: refuses invalid settings before any work
    do(pipeline)      does the work and returns the result, from Python `pipeline.NAME()`; `run` and `plan` are in Pipeline
    run(pipeline)     does the work, prints the result and returns the exit code of the process
"""

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """The names of all actions: the modules of this package that do not begin with an underscore."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def load(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def help_lines() -> dict[str, str]:
    """Action -> first line of its docstring, read from the source because importing all of them takes a second."""
    sources = {name: (Path(__path__[0]) / f"{name}.py").read_text(encoding="utf-8") for name in names()}
    return {name: ast.get_docstring(ast.parse(source)).splitlines()[0] for name, source in sources.items()}
