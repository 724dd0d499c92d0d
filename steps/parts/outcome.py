"""What a run has given, for the remarks of the steps about their results (`named`, `advice` and `remarks` of `steps.step`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Advice = tuple[str | None, Any, str]   # a setting and the value to try, or None and what else helps; why
MARGIN = 0.5   # points of mIoU; a smaller difference counts as no change


def noun(title: str) -> str:
    """The title of a result within a sentence: LPCAM, but "the pseudo masks"."""
    return title if title[0].isupper() else f"the {title}"


def plural(title: str) -> bool:
    return title.endswith("s")


@dataclass(frozen=True)
class Remark:
    """A remark in the description of a run. `points`: the difference of the mIoU of `stage` from that of the kind `before`."""

    stage: str                               # a kind of result, or a step
    about: str                               # "change", "threshold", ...: unique for the stage
    text: str
    before: str | None = None
    points: float | None = None
    advice: Sequence[Advice] = ()


@dataclass(frozen=True)
class Outcome:
    """What a run has given.

    `scores`: the score values with a mIoU, by kind of result, each with its "title" and the kind of maps it was "made_from".
    `results`: what the finished steps returned, by step. `setting(key, default=None)`: the value in use of a setting of the
    configuration; `default` if there is none or it is unknown. `title(kind)`: of a kind of result; of another word itself.
    """

    scores: Mapping[str, Mapping[str, Any]]
    results: Mapping[str, Mapping[str, Any]]
    setting: Callable[..., Any]
    title: Callable[[str], str]

    def points(self, kind: str, before: str | None) -> float | None:
        """The points of mIoU of `kind` above `before`; None if one has no score, or they were scored on other images."""
        new, old = self.scores.get(kind), self.scores.get(before or "")
        if new is None or old is None or new["images"] != old["images"] or None in (new["miou"], old["miou"]):
            return None
        return 100 * (new["miou"] - old["miou"])

    @property
    def lowered(self) -> list[str]:
        """The kinds of results that are worse than the maps that they were made from."""
        differences = {kind: self.points(kind, score["made_from"]) for kind, score in self.scores.items()}
        return [kind for kind, points in differences.items() if points is not None and points < -MARGIN]

    def longer(self, step: str, default: int) -> tuple[str, int]:
        """The setting that makes a training twice as long, and its value. `default`: the number of epochs if it is not known."""
        if steps := self.setting(f"{step}.steps"):
            return f"{step}.steps", 2 * steps
        return f"{step}.epochs", 2 * (self.results.get(step, {}).get("epochs") or self.setting(f"{step}.epochs") or default)


@dataclass(frozen=True)
class Change:
    """The fall of a kind of result below the maps that it was made from (`before`), for `advice`.

    `cause`: "spread" (more background covered), "shrink" (more of the objects missed) or None.
    """

    name: str                                # of the step that made the result
    reads: Mapping[str, str]                 # role -> step
    kind: str
    before_kind: str
    cause: str | None
    outcome: Outcome

    @property
    def score(self) -> Mapping[str, Any]:
        return self.outcome.scores[self.kind]

    @property
    def before(self) -> Mapping[str, Any]:
        return self.outcome.scores[self.before_kind]
