"""Sweeps: `-m key=A,B` runs the pipeline for every combination of the swept values, each as its own run, NAME/KEY=VALUE.

Steps that do not depend on a swept value are made once, in the run NAME, and every member reuses them by fingerprint. Hydra's
launcher (basic, submitit_local, submitit_slurm) runs the members; this process waits for them and compares the results.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from pipeline.config import explain
from pipeline.order import BY_NAME
from pipeline.plan.fingerprint import identities
from pipeline.plan.lists import derive_lists
from pipeline.report.kinds import main_heading, main_measure, measured, of_runs, with_first_measure
from pipeline.runfolder.folder import MANIFEST
from pipeline.runner import SUMMARY, Pipeline
from pipeline.words import as_meant
from steps.runtime.artifacts import read_json
from steps.runtime.datasets import open_dataset
from wsss.errors import ConfigError
from wsss.files import write_text
from wsss.text import aligned, csv_text

TABLE, PLOT = "sweep.csv", "sweep.png"
HYDRAS = ("hydra.", "hydra/")


class Sweep:
    """The members of a sweep, from the words of a command line with -m.

    Raises ConfigError if no key has several values, or the configuration of a member is invalid.
    """

    def __init__(self, words: Sequence[str]):
        self.hydra = [word for word in words if word.startswith(HYDRAS)]
        self.words = [as_meant(word) for word in words if not word.startswith(("-", *HYDRAS))]
        try:
            overrides = OverridesParser.create().parse_overrides(self.words)
        except HydraException as error:
            raise ConfigError(explain(error)) from error
        swept = [override for override in overrides if override.is_sweep_override()]
        if not swept or not all(override.is_discrete_sweep() for override in swept):
            raise ConfigError("-m needs a key with several values, for example seed=0,1,2")
        self.keys = [override.get_key_element() for override in swept]
        self.values = list(product(*(list(override.sweep_string_iterator()) for override in swept)))
        self.fixed = [override.input_line for override in overrides if not override.is_sweep_override()]
        self.base = Pipeline.compose(*self.first)
        self.naming = [f"multirun.name='{self.base.config.run_name}'", f"multirun.over=[{','.join(self.keys)}]"]
        self.members = [Pipeline.compose(*self.fixed, *self._set(values), *self.naming) for values in self.values]

    @property
    def first(self) -> list[str]:
        """The command line of the first combination."""
        return [*self.fixed, *self._set(self.values[0])]

    def _set(self, values: Sequence[str]) -> list[str]:
        return [f"{key}={value}" for key, value in zip(self.keys, values, strict=True)]

    def shared(self) -> list[str]:
        """The steps with the same identity in all members, in order. The steps they read are shared too."""
        found = []
        for member in self.members:
            dataset = open_dataset(member.config.data)
            found.append(identities(member.config, dataset, derive_lists(member.config, dataset), recorded=None))
        return [name for name, identity in found[0].items() if all(other.get(name) == identity for other in found)]

    def run(self, call: Callable[[list[str]], None]) -> int:
        """Run the shared steps, then all members, by `call` with Hydra's command-line words. Returns the exit code: 1 if a member
        has no scores at the end."""
        console, shared, take = self.base.console, self.shared(), []
        hydra = ["-m", *self.hydra, f"hydra.sweep.dir='{self.base.folder.path.parent.resolve()}/.sweep'"]
        if shared:
            console.info(f"once for all {len(self.members)} members, in {self.base.folder.path}: {', '.join(shared)}")
            call([*hydra, *self.first, *(f"{BY_NAME[name].flag}=true" for name in shared)])
            if missing := [name for name in shared if not (self.base.folder.result(name) / MANIFEST).exists()]:
                console.warning(f"{', '.join(missing)} could not be made once for all members: each makes it by itself")
            if any(self.base.folder.path.glob(f"*/{MANIFEST}")):
                take = [f"reuse_from=['{self.base.folder.path.resolve()}']"]
        call([*hydra, *self.words, *self.naming, *take])
        return self.write_scores()

    def write_scores(self) -> int:
        """Print the scores of all members and write them as a table and a plot into the sweep's folder."""
        paths = [member.folder.path / SUMMARY for member in self.members]
        found = [measured(read_json(path) if path.exists() else {}) for path in paths]
        kinds = of_runs(found)
        drawn = with_first_measure(kinds)
        heads = [*self.keys, *(score["title"] if kind in drawn else f"{score['title']}, {main_heading(score)}"
                               for kind, score in kinds.items())]
        rows = [[*map(str, values), *("" if kind not in scores or (value := main_measure(scores[kind])) is None
                                      else f"{100 * value:.1f}" for kind in kinds)]
                for values, scores in zip(self.values, found, strict=True)]
        self.base.console.result("\n".join(aligned([heads, *rows], left=range(len(heads)))))
        write_text(self.base.folder.path / TABLE, csv_text([heads, *rows]))
        written, measure = [TABLE], next(map(main_heading, kinds.values()), "scores")
        if importlib.util.find_spec("matplotlib"):
            columns = {kind: column for column, kind in enumerate(kinds, start=len(self.keys)) if kind in drawn}
            plot(self.base.folder.path / PLOT, heads, rows, columns, measure)
            written.append(PLOT)
        self.base.console.result(f"{measure} in percent; also in {self.base.folder.path}/: {', '.join(written)}")
        return 0 if all(any(row[len(self.keys):]) for row in rows) else 1


def plot(path: Path, heads: list[str], rows: list[list[str]], columns: Mapping[str, int], measure: str) -> None:
    """Plot the `columns` of kinds of results over the members, which are in the columns before, as PNG."""
    from pipeline.report.figures import colour, png  # imported here because it is slow

    n_keys = min(columns.values(), default=1)
    members = [", ".join(row[:n_keys]) for row in rows]
    with png(path, 6, 4) as figure:
        axes = figure.subplots()
        for kind, column in columns.items():
            known = [(member, float(row[column])) for member, row in zip(members, rows) if row[column]]
            if known:
                axes.plot(*zip(*known), marker="o", label=heads[column], color=colour(kind))
        axes.set(xlabel=", ".join(heads[:n_keys]), ylabel=f"{measure}, percent")
        if axes.lines:
            axes.legend()
