"""The words KEY=VALUE of a command line, as Hydra reads them."""

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

_ELEMENTS = re.compile(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,'"])+""")   # of a list; a comma in quotes is part of one


def as_meant(word: str) -> str:
    """A word whose value Hydra's grammar cannot read, with that value in quotes, so that it is taken as the text that it is:
    `data.root=~/写 (1)` is `data.root='~/写 (1)'`. In a list `[A,B]` each element is quoted. Other words are returned unchanged,
    also those that are wrong in another way."""
    key, equals, value = word.partition("=")
    if not equals or _readable(word):
        return word
    is_list = value[:1] == "[" and value[-1:] == "]"
    meant = f"{key}={'[' + ','.join(map(_element, _ELEMENTS.findall(value[1:-1]))) + ']' if is_list else quoted(value)}"
    return meant if _readable(meant) else word


def quoted(value: str) -> str:
    """A value in single quotes, for Hydra: backslashes before a quote or at the end are doubled."""
    inside = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
    return f"'{inside}'"


def _element(value: str) -> str:
    value = value.strip()
    return value if value[:1] in ("'", '"') or _readable(f"key={value}") else quoted(value)


def _readable(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True
