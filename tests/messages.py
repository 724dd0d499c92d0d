"""Collect all messages of this project from its source: of errors, reported problems and warnings.

A message is a template with `...` for values that are inserted at run time. Messages that cannot be read from the source are
listed in `unread`: write the text where the error is created, as a string, an f-string or a sum of them.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

GAP = "..."
LETTERS = 12                        # minimum number of literal letters in a message or an entry
WARNINGS = {"warn", "warning"}      # functions whose argument is the text of a warning
REASONS = {"problems", "failed"}    # lists and dictionaries of texts that are joined in another message
OTHERS_WORDS = {"explain"}         # functions that may return Hydra's text
OTHER_RAISES = {"Stopped",          # a requested stop is no error
                "AttributeError"}   # required by __getattr__
_GAP = "\0"


@dataclass
class Messages:
    """`found`: template -> places; `unread`: places that cannot be read; `foreign`: places that raise other errors, or assert."""

    found: dict[str, list[str]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def collect(sources: Mapping[str, str]) -> Messages:
    """The messages of a project: `sources` maps the name of each file to its text."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    collector = _Collector(_errors(nodes), {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)})
    for name, tree in trees.items():
        collector.visit(name, tree)
    return collector.messages


def words(text: str) -> int:
    """The number of literal letters in a template."""
    return len(re.sub(r"[\W\d_]", "", text))


def covers(entry: str, template: str) -> bool:
    """Whether an entry covers a message: the same text with `...` for values; the entry may be a prefix."""
    return re.match(".*".join(map(re.escape, entry.split(GAP))), template) is not None


def _errors(nodes: list[ast.AST]) -> set[str]:
    """`WsssError` and all its subclasses."""
    errors, classes = {"WsssError"}, [node for node in nodes if isinstance(node, ast.ClassDef)]
    while more := {node.name for node in classes if errors & set(map(_name, node.bases))} - errors:
        errors |= more
    return errors


def _name(node: ast.AST | None) -> str | None:
    """`f` of `f` and of `module.f`."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _container(node: ast.AST) -> str | None:
    """`f` of `f` and of `f[key]`."""
    return _name(node.value if isinstance(node, ast.Subscript) else node)


def _targets(node: ast.Assign | ast.AugAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


class _Collector:
    def __init__(self, errors: set[str], functions: dict[str, ast.FunctionDef]):
        self.errors, self.functions, self.messages = errors, functions, Messages()

    def visit(self, name: str, node: ast.AST, inside: str = "", given: frozenset[str] = frozenset()) -> None:
        """Collect the messages of a node and its children; `inside` and `given`: the enclosing function and its arguments."""
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            inside = getattr(node, "name", inside)
            given = given | {argument.arg for argument in node.args.args}
        if isinstance(node, ast.Call):
            self._call(f"{name}:{node.lineno}", node, inside, given)
        if isinstance(node, (ast.Assign, ast.AugAssign)) and REASONS & set(map(_container, _targets(node))):
            several = [node.value.elt] if isinstance(node.value, ast.ListComp) else getattr(node.value, "elts", [node.value])
            for element in several:
                self._take(f"{name}:{node.lineno}", element, part=True)
        if isinstance(node, ast.Assert) or isinstance(node, ast.Raise) and not self._is_ours(node.exc):
            self.messages.foreign.append(f"{name}:{node.lineno}: {ast.unparse(node)[:100]}")
        for child in ast.iter_child_nodes(node):
            self.visit(name, child, inside, given)

    def _call(self, place: str, call: ast.Call, inside: str, given: frozenset[str]) -> None:
        function, argument = _name(call.func), call.args[0] if call.args else None
        if function in self.errors and inside != "refuse":   # messages of `refuse` are collected at its calls
            self._take(place, argument)
        elif function == "refuse":
            self._take(place, ast.BinOp(argument, ast.Add(), ast.Constant(": ... problems")))
        elif function in WARNINGS:
            handed_on = any(isinstance(node, ast.Name) and node.id in {"message"} & given or ast.unparse(node) == "str(error)"
                            or isinstance(node, ast.Subscript) and _container(node) in REASONS for node in ast.walk(call))
            self._take(place, ast.BinOp(argument, ast.Mod(), ast.Tuple([])) if len(call.args) > 1 else argument, part=handed_on)
        elif function == "append" and _name(getattr(call.func, "value", None)) in REASONS:
            self._take(place, argument, part=True)

    def _is_ours(self, raised: ast.expr | None) -> bool:
        """Whether it raises an error of this project, re-raises one (`raise`, `raise error`, `raise type(error)(...)`), or stops."""
        if not isinstance(raised, ast.Call):
            name = _name(raised)
            return raised is None or name in OTHER_RAISES or (name is not None and not name[0].isupper())
        return isinstance(raised.func, ast.Call) or _name(raised.func) in self.errors | self.functions.keys() | OTHER_RAISES

    def _take(self, place: str, argument: ast.expr | None, part: bool = False) -> None:
        """`part`: without literal text, the expression passes on a message that is collected elsewhere."""
        for text in self._texts(argument, ()):
            if words(text) >= LETTERS:
                self.messages.found.setdefault(text, []).append(place)
            elif not part and not (isinstance(argument, ast.Call) and _name(argument.func) in OTHERS_WORDS):
                self.messages.unread.append(f"{place}: {ast.unparse(argument) if argument else 'no message'}")

    def _texts(self, node: ast.expr | None, within: tuple[str, ...]) -> Iterator[str]:
        """The possible texts of an expression: both sides of a condition, and the return values of functions of this project."""
        function = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        if isinstance(node, ast.IfExp):
            yield from self._texts(node.body, within)
            yield from self._texts(node.orelse, within)
        elif function in self.functions and function not in within:
            for inner in ast.walk(self.functions[function]):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    yield from self._texts(inner.value, (*within, function))
        elif words(_text(node)) < LETTERS and isinstance(node, ast.JoinedStr):
            parts = [list(self._texts(getattr(part, "value", part) if isinstance(part, ast.FormattedValue) else part, within))
                     for part in node.values]
            yield from (_tidy("".join(chosen)) for chosen in product(*parts))
        elif not within or ast.unparse(node) != "str(error)":   # the text of another error of this project
            yield _tidy(_text(node))


def _tidy(text: str) -> str:
    return re.sub(r"\.{4,}", GAP, re.sub(r"\s+", " ", re.sub(f"[`{_GAP}]", GAP, text)))


def _text(node: ast.expr | None) -> str:
    """The template of a string expression, with a mark for every inserted value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return re.sub(r"%[-\d.]*[a-z]", _GAP, _text(node.left))
    if isinstance(node, ast.Call) and _name(node.func) == "format":
        return re.sub(r"\{.*?\}", _GAP, _text(node.func.value))
    return _GAP
