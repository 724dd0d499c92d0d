"""No refinement: the seed maps at a background threshold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from wsss.refiners.method import Advice, RefinerMethod


@dataclass
class NoRefinement(RefinerMethod):
    """The seed maps in the size of the image, and the background threshold. It has no settings."""

    title: ClassVar[str] = "no refinement"
    subject: ClassVar[str] = "the seeds without refinement are"

    def memory(self, labellings: int, gpu: bool) -> tuple[float, float]:
        return 0, 0

    @classmethod
    def advice(cls, cause: str | None, setting: Callable[..., Any]) -> list[Advice]:
        return []


Method = NoRefinement
