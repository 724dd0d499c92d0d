"""The record that ties each step's VERSION to the sources that it reaches; `python -m tests.versions` writes it.

A run reuses results whose VERSION is unchanged, so a change of the sources that changes results must raise it. Comments,
docstrings and white space do not count.
"""

import ast
import hashlib
import io
import json
import re
import tokenize
from functools import cache
from pathlib import Path

from pipeline.order import STEPS
from tests.test_house import ROOT, modules_imported
from wsss.families import FAMILIES, method_files

RECORD = Path(__file__).with_suffix(".json")
SOURCES = {str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
           for room in ("wsss", "steps") for path in sorted((ROOT / room).rglob("*.py"))}


@cache
def imports(name: str) -> set[str]:
    """The modules that a module imports, and those of the methods that it may run."""
    families = re.findall(r'\bmethods\["(\w+)"\]', SOURCES[name].read_text())
    return modules_imported(SOURCES[name], SOURCES) | {
        f"{FAMILIES[family]}.{method}" for family in families for method in method_files(family)}


def reached(module: str) -> set[str]:
    """The modules of wsss and steps that a module imports, directly or not, with itself."""
    found, new = set(), {module}
    while new:
        found |= new
        new = set().union(*(imports(name) for name in new)) - found
    return found


def digest(path: Path) -> str:
    """A digest of the code, the same for every version of Python."""
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    spans = [(node.body[0].lineno, 0, node.body[0].end_lineno, node.body[0].end_col_offset) for node in ast.walk(ast.parse(text))
             if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None]
    spans += [(*token.start, *token.end) for token in tokenize.generate_tokens(io.StringIO(text).readline)
              if token.type == tokenize.COMMENT]
    for first, start, last, end in sorted(spans, reverse=True):
        rest = lines[last - 1].encode()[end:].decode() if last > first else lines[last - 1][end:]
        lines[first - 1:last] = [lines[first - 1][:start] + rest]
    return hashlib.sha256(re.sub(r"\s", "", "".join(lines)).encode()).hexdigest()[:12]


def current() -> dict[str, dict]:
    files = sorted({row.file: row.VERSION for row in STEPS}.items())
    modules = set().union(*(reached(f"steps.{file}") for file, _ in files))
    return {"versions": dict(files), "sources": {name: digest(SOURCES[name]) for name in sorted(modules)}}


def findings(recorded: dict[str, dict], now: dict[str, dict]) -> list[str]:
    """A line for each step whose sources changed while its VERSION did not, or whose VERSION is not the recorded one."""
    changed = {name for name in recorded["sources"].keys() | now["sources"].keys()
               if recorded["sources"].get(name) != now["sources"].get(name)}
    lines = []
    for file, version in now["versions"].items():
        sources = sorted(changed & reached(f"steps.{file}"))
        if recorded["versions"].get(file) != version:
            lines.append(f"{file}: VERSION {version} is not recorded")
        elif sources:
            lines.append(f"{file}: VERSION is {version} as before, but {', '.join(sources)} changed")
    return lines


if __name__ == "__main__":
    RECORD.write_text(json.dumps(current(), indent=1) + "\n")
