"""The text of `--help`. Imports nothing slow and composes no configuration."""

import textwrap
from pathlib import Path

import yaml

from pipeline import actions
from pipeline.order import BY_NAME
from pipeline.presets import CONF

TEXT = """\
Weakly supervised semantic segmentation - image-level labels in, pixel masks out.

  python run_pipeline.py                                   all steps on the embedded data set
  python run_pipeline.py experiment=smoke                  the same at its smallest
  python run_pipeline.py data=folder data.root=DIR name=N  your own images
  python run_pipeline.py -m KEY=A,B                        a run for each value
  python run_pipeline.py action=predict images=DIR run=N out=DIR
                                                           masks of your photographs, by the network of a run

{steps}

Actions, each chosen by action=NAME:
{actions}
Groups, each chosen by group=option:
{groups}
Any key can be set by key=value (seed=1, STEP.KEY=VALUE); `--cfg job` prints all keys and values.
Shell completion of keys and groups, here in bash: eval "$(python run_pipeline.py -sc install=bash)"
"""
MOST_NAMED = 4   # experiments beside a step, those with the shortest names


def help_text() -> str:
    lines = "".join(f"  {name:<16} {line}\n" for name, line in actions.help_lines().items())
    groups = "".join(f"  {group}: {', '.join(sorted(options))}\n" for group, options in sorted(_groups().items()))
    return TEXT.format(steps=_steps(), actions=lines, groups=groups).rstrip()


def _steps() -> str:
    """The steps and their flags: first those that run by default, then the others with the experiments that have them."""
    default, flags = _steps_of(CONF / "config.yaml"), {name: row.flag for name, row in BY_NAME.items()}
    of_experiments = {path.stem: _steps_of(path) for path in sorted(CONF.glob("experiment/*.yaml"))}
    paragraphs = [f"Steps: {', '.join(default)}",
                  "Flags: STEP_pass=true runs only the steps so marked, STEP_pass=false leaves one out "
                  f"({' '.join(flags[name] for name in default)}); or from_step=STEP, to_step=STEP."]
    further: dict[str, list[str]] = {}   # the experiments that have them -> steps
    for name in (name for name in BY_NAME if name not in default):
        having = sorted((experiment for experiment, steps in of_experiments.items() if name in steps), key=len)
        more = f" and {len(having) - MOST_NAMED} more" if having[MOST_NAMED:] else ""
        where = f"experiment={' | '.join(having[:MOST_NAMED])}{more}" if having else ""
        further.setdefault(where or "no experiment, add them by steps=[...]", []).append(name)
    paragraphs += [f"Further steps, in {where}: {', '.join(names)} ({' '.join(flags[name] for name in names)})"
                   for where, names in further.items()]
    return "\n".join(textwrap.fill(text, 120, subsequent_indent="       ", break_long_words=False) for text in paragraphs)


def _steps_of(path: Path) -> list[str]:
    """The steps in a file; [] if there are none, or if it cannot be read, which is an error only where it is used."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return list(content["steps"])
    except (yaml.YAMLError, KeyError, TypeError):
        return []


def _groups() -> dict[str, set[str]]:
    """The options of each group, from the files below `conf/`."""
    groups: dict[str, set[str]] = {}
    for path in CONF.glob("*/*.yaml"):
        groups.setdefault(path.parent.name, set()).add(path.stem)
    return groups
