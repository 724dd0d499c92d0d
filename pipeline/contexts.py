"""Make the contexts of steps: the only place that does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.machine import loader_processes
from pipeline.order import made_kinds
from pipeline.plan.lists import dataset_of
from steps.runtime.context import Group, Runtime, Source, StepContext, methods_of
from wsss.data.dataset import Dataset

if TYPE_CHECKING:
    import torch


def make_runtime(config: Any, device: torch.device, group: Group, **more: Any) -> Runtime:
    """Where the steps of a run work; `more`: the callbacks `progress`, `warn`, ..."""
    return Runtime(device=device, precision=config.precision.value, group=group, layout=config.artifacts.layout,
                   gpu_fallback=config.gpu_fallback.value == "cpu",
                   workers=loader_processes(config.workers, config.threads, device, group.here),
                   shard=config.part or (0, 1), prepared=config.part is not None, stop=lambda: group.asked is not None, **more)


def make_context(config: Any, dataset: Dataset, name: str, lists: Mapping[str, tuple[str, ...]], folder: Path,
                 sources: Mapping[str, tuple[str, ...]], place: Callable[[str], Path | None], runtime: Runtime) -> StepContext:
    """The context of a step that works in `folder`.

    `sources`: the steps that it reads, by role; those without a folder (`place`) are left out.
    """
    inputs = {role: tuple(Source(source, made_kinds(config, source), found) for source in names if (found := place(source)))
              for role, names in sources.items()}
    return StepContext(name=name, settings=getattr(config, name), dataset=dataset_of(config, dataset, name), lists=lists,
                       folder=folder, inputs=inputs, seed=config.seed, runtime=runtime, methods=methods_of(config, name),
                       further=config.further.get(name, {}))
