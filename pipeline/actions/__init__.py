"""What `action=NAME` does: one file an action. A new action is a new file here; nothing else lists them.

The module of an action has

    a docstring       its first line says in `--help` and in the README what the action does
    Settings          a dataclass without defaults, where it has keys of its own: their values stand in `conf/config.yaml`
    check(config)     where it has one: refuses settings before any work
    do(pipeline)      the work and its result, for use from Python as `pipeline.NAME()`; `run` and `plan` are in Pipeline itself
    run(pipeline)     does the work, prints what came of it and returns the exit code of the process
"""

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """The actions there are: the modules of this package that do not begin with an underscore."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def load(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def help_lines() -> dict[str, str]:
    """By action the first line of its docstring, read from the source: to import them all takes a second."""
    sources = {name: (Path(__path__[0]) / f"{name}.py").read_text(encoding="utf-8") for name in names()}
    return {name: ast.get_docstring(ast.parse(source)).splitlines()[0] for name, source in sources.items()}
