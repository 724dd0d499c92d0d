"""The text of `--help`. Hydra prints the same, but composes a configuration for it, which takes a second."""

import re
from pathlib import Path
from string import Template

import yaml

CONF = Path(__file__).resolve().parent.parent / "conf"


def help_text() -> str:
    """The template `hydra.help` of `conf/config.yaml`, filled in."""
    of_hydra = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["hydra"]["help"]
    template = of_hydra["template"].replace("${hydra.help.header}", of_hydra["header"])
    groups = "".join(f"{group}: {', '.join(sorted(options))}\n" for group, options in sorted(_groups().items()))
    return Template(template).substitute(APP_CONFIG_GROUPS=groups)


def _groups() -> dict[str, set[str]]:
    """The options of each group: the files below `conf/`, and the kinds of data sets that those of `data` name."""
    groups: dict[str, set[str]] = {}
    for path in CONF.glob("*/*.yaml"):
        groups.setdefault(path.parent.name, set()).add(path.stem)
        for kind in re.findall(r"/(schema/\w+)@\w+: (\w+)", path.read_text(encoding="utf-8")):
            groups.setdefault(kind[0], set()).add(kind[1])
    return groups
