"""The training loop of the training steps: resumable at any saved step, with the same bytes as an uninterrupted run.

The order of the samples derives from (seed, step name, epoch), the draws of a sample (augmentation) from (seed, step name, epoch,
image id), those of the network (dropout) from (seed, step name, optimiser step); the latter are the same in each part of a batch.
torch's generators are seeded with them, and the global random state is left unchanged. So the state of a training is only its
weights, the optimiser's tensors, the log and the number of the next step: `state.safetensors`, replaced as a whole at each save.
"""

import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from steps.runtime.concurrency import lacks_memory
from steps.runtime.context import StepContext, Stopped
from steps.runtime.gradients import RunningStatistics, sum_grads, sum_parts
from steps.runtime.schedule import STATE, OptimizerName, Schedule
from steps.runtime.training_log import TrainingLog
from wsss.errors import ArtifactError, WeightsError, WsssError, prefixed
from wsss.networks.facts import read_metadata
from wsss.networks.weights import checksum, read_tensors, save_tensors
from wsss.seeding import derived_seed, generator, seeded


def fit(context: StepContext, schedule: Schedule, module: nn.Module, optimizer: torch.optim.Optimizer,
        sample: Callable[[int, str, tuple[str, ...]], tuple], loss: Callable[..., dict[str, torch.Tensor]],
        validate: Callable[[], dict[str, Any]] = dict, pictures: Callable[[], dict[str, np.ndarray]] = dict,
        counts: Callable[..., torch.Tensor | None] = lambda *part: None) -> list[dict[str, Any]]:
    """Train `module` on the step's ids and return the log, one dict per step and one per validation.

    `sample(epoch, id, batch)` returns the tensors of one training sample; `batch` are the ids of its whole batch, in order, over
    all parts and processes. It may draw from torch's global generator of the CPU. `loss(*part, total)` returns named scalars,
    among them "loss", for a part of a batch: its share of the losses of the batch, so that losses and gradients are sums over
    the parts. `total` is the sum of `counts(*part)` over all parts, or None if the batch has only one.
    `validate()` is called after every `schedule.val_epochs` and its values are logged; `pictures()` if they are due
    (`context.runtime.pictures_due`): name -> (H, W, 3) uint8. Neither may draw random numbers.

    A batch is split into `schedule.parts` parts, or fewer if it has fewer images: part i has the images i, i + parts, ..., and
    process r of R the parts r, r + R, ... Everything that is summed over the parts is summed in an order that does not depend
    on R, so any number of processes gives the same bits. `schedule.parts` None: one part for each process, which is faster.

    Raises
    ------
    Stopped
        if asked to stop; the state is saved.
    WsssError
        if the loss or, before they are saved or measured, the weights are not finite.
    """
    runtime, total, epoch_steps = context.runtime, schedule.steps, schedule.steps_per_epoch(len(context.ids))
    base_lrs = [group["lr"] for group in optimizer.param_groups]
    step, lines = _load_state(context, module, optimizer, total)
    log = TrainingLog(context, schedule.parts_per_batch(len(context.ids), runtime.group.size), lines)
    module.train()
    measured: dict[str, Any] = {}
    while step < total:
        epoch, first = divmod(step, epoch_steps)
        for batch in _batches(context, schedule, sample, epoch, first, min(epoch_steps, first + total - step)):
            lr = _set_lr(optimizer, base_lrs, schedule.lr_factor(step, total))
            losses = train_step(context, schedule, module, optimizer, loss, batch, counts, step)
            log.add_step({"step": step, "epoch": epoch, "lr": lr}, losses)
            step += 1
            validates = step == total or step % (schedule.val_epochs * epoch_steps) == 0
            saves = step == total or step % schedule.checkpoint_steps == 0
            if validates or saves:
                _read(log, context, module, optimizer, step)
            runtime.progress(step, total, log.note(measured))
            if validates:
                measured = validate()
                log.add({"step": step, "epoch": epoch, **measured})
                module.train()
            stops, shows = _any(context, runtime.stop(), runtime.pictures_due(step))
            if stops or shows:
                _read(log, context, module, optimizer, step)
            if runtime.pictures_due(step):   # in the process that has the logger
                runtime.show(step, pictures())
                module.train()
            if runtime.group.is_main and (stops or saves):
                _save_state(context, module, optimizer, step, log)
            if stops:
                raise Stopped
    if runtime.group.is_main:
        log.write()   # also if it was deleted after the training
    return log.lines


def _set_lr(optimizer: torch.optim.Optimizer, base_lrs: list[float], factor: float) -> float:
    """Set the learning rates of all groups of parameters; return that of the first."""
    for group, base in zip(optimizer.param_groups, base_lrs, strict=True):
        group["lr"] = base * factor
    return optimizer.param_groups[0]["lr"]


def train_step(context: StepContext, schedule: Schedule, module: nn.Module, optimizer: torch.optim.Optimizer,
               loss: Callable[..., dict[str, torch.Tensor]], batch: Iterable[Iterable[torch.Tensor]],
               counts: Callable[..., torch.Tensor | None] = lambda *part: None, step: int = 0) -> dict[str, torch.Tensor]:
    """Do step number `step` on this process's parts of a batch (see `fit`).

    Returns the shares of these parts in the losses before it, in order: (parts,) float64 each, on the device, which is not waited
    for.
    """
    group = context.runtime.group
    n_parts = schedule.parts_per_batch(len(context.ids), group.size)
    shares: dict[int, dict[str, torch.Tensor]] = {}   # the losses of the parts of this process
    statistics = RunningStatistics(module)

    def backward(number: int) -> None:
        # the same for each part: a draw of the step, such as whether to drop a layer, must not depend on the split
        with seeded(derived_seed(context.seed, schedule.purpose, "network", step), context.runtime.device):
            with context.runtime.autocast():
                with statistics.of_part(number):
                    share = loss(*parts[number], total)
            share["loss"].backward()
        shares[number] = {name: value.detach().double() for name, value in share.items()}

    try:
        parts = {group.rank + i * group.size: [tensor.to(context.runtime.device, non_blocking=True) for tensor in part]
                 for i, part in enumerate(batch)}
        total = _total(context, [counts(*part) for part in parts.values()]) if n_parts > 1 else None
        optimizer.zero_grad(set_to_none=True)
        # within one context of autocast, even if disabled, the weights are cast once for all parts
        with torch.autocast(context.runtime.device.type, enabled=False):
            if schedule.parts is None:
                backward(group.rank)
                sum_grads(group, list(module.parameters()))
            else:
                sum_parts(group, list(module.parameters()), n_parts, backward)
        statistics.average(group, n_parts)
        optimizer.step()
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        name = schedule.purpose
        raise WsssError(
            f"not enough memory for {name}.batch_size={schedule.batch_size} in {n_parts} parts ({error}). Raise "
            f"{name}.parts (at most one for each image), or lower the batch size or {name}.crop_size; with any of these the "
            "training begins again, because they count") from error
    return {name: torch.stack([shares[number][name] for number in sorted(shares)]) for name in next(iter(shares.values()))}


def _total(context: StepContext, counts: list[torch.Tensor | None]) -> torch.Tensor | None:
    """The sum over the parts of a batch, of all processes. The counts are whole numbers: their order does not matter."""
    known = [count for count in counts if count is not None]
    return context.runtime.group.sum(torch.stack(known).sum(0)) if known else None


def _any(context: StepContext, *flags: bool) -> list[bool]:
    """Of each flag whether it is true in any process of the group."""
    return context.runtime.group.sum(torch.tensor(flags, dtype=torch.int64)).bool().tolist()


class _Samples(Dataset):
    """Samples addressed by (epoch, id, ids of the batch), so that a loader's workers need no state."""

    def __init__(self, context: StepContext, sample: Callable[[int, str, tuple[str, ...]], tuple]):
        self.context, self.sample = context, sample

    def __getitem__(self, key: tuple[int, str, tuple[str, ...]]) -> tuple | WsssError:
        epoch, image_id, batch = key
        try:
            with seeded(derived_seed(self.context.seed, self.context.name, epoch, image_id)):
                return self.sample(epoch, image_id, batch)
        except WsssError as error:   # returned: a loader would wrap a raised error in the traceback of its worker
            return prefixed(error, image_id)


def _collate(samples: list[tuple | WsssError]) -> list[torch.Tensor] | WsssError:
    return next((sample for sample in samples if isinstance(sample, WsssError)), None) or default_collate(samples)


def _worker_ignores_signals(worker: int) -> None:
    """Ignore signals to the process group: the main process saves and then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _batches(context: StepContext, schedule: Schedule, sample: Callable, epoch: int, first: int,
             end: int) -> Iterator[list[list[torch.Tensor]]]:
    """Yield the batches of an epoch from number `first` to before `end`, each as the parts of this process."""
    ids = context.ids
    order = generator(context.seed, schedule.purpose, "order", epoch).permutation(len(ids))
    size = min(schedule.batch_size, len(ids))
    parts = schedule.parts_per_batch(len(ids), context.runtime.group.size)
    mine = context.runtime.part(range(parts))
    batches = [tuple(ids[i] for i in order[number * size:(number + 1) * size]) for number in range(first, end)]
    keys = [[(epoch, image_id, batch) for image_id in batch[part::parts]] for batch in batches for part in mine]
    workers = context.runtime.workers
    loader = DataLoader(_Samples(context, sample), batch_sampler=keys, collate_fn=_collate, num_workers=min(workers, len(keys)),
                        generator=torch.Generator(),   # else it draws from the global one
                        worker_init_fn=_worker_ignores_signals, pin_memory=context.runtime.device.type == "cuda",
                        multiprocessing_context="fork" if workers else None)   # closures cannot be pickled
    try:
        batch = []
        for part in loader:
            if isinstance(part, WsssError):
                raise part
            batch.append(part)
            if len(batch) == len(mine):
                yield batch
                batch = []
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise WsssError(f"a loader process of workers={workers} died ({str(error).splitlines()[0]}), probably because "
                        "memory or shared memory (/dev/shm) ran out. Lower workers; the same command continues at the last saved "
                        "state") from error


def _read(log: TrainingLog, context: StepContext, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Read the log, then check the weights: a loss that is not finite is the earlier and clearer message."""
    log.read()
    _require_finite(context, module, optimizer, step)


def _require_finite(context: StepContext, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Raise WsssError if the weights or the optimiser's tensors are not finite after a number of steps. The losses, which are
    those before a step, do not show it."""
    states = optimizer.state_dict()["state"]
    tensors = module.state_dict() | {f"the optimiser's {name} of parameter {index}": value for index, values in states.items()
                                     for name, value in values.items() if value is not None}
    names = [name for name, value in tensors.items() if value.is_floating_point()]
    finite = torch.stack([tensors[name].isfinite().all().to(context.runtime.device) for name in names])
    if not finite.all():   # waits for a GPU once, not for each tensor
        first = names[int(finite.int().argmin())]
        raise WsssError(f"{first} is not finite after step {step - 1}, expected finite weights. Lower {context.name}.lr; "
                        "the last saved state is untouched")


def _save_state(context: StepContext, module: nn.Module, optimizer: torch.optim.Optimizer, step: int,
                log: TrainingLog) -> None:
    tensors = {f"module/{name}": value for name, value in module.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items() if value is not None}
    facts = {"step": step, "log": log.lines}
    save_tensors(context.folder / STATE, tensors, {**facts, "checksum": checksum(tensors, facts)})
    log.write()


def _load_state(context: StepContext, module: nn.Module, optimizer: torch.optim.Optimizer, total: int) -> tuple[int, list]:
    path = context.folder / STATE
    if not path.exists():
        return 0, []
    try:
        tensors, facts = read_state(path)
    except WeightsError as error:
        raise ArtifactError(f"{path} is damaged ({error}). Without it the same command trains again from the start",
                            damaged=path) from error
    state: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    try:
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                state[int(index)][key] = value
        step, log = facts["step"], facts["log"]
        module.load_state_dict({name.removeprefix("module/"): value for name, value in tensors.items()
                                if name.startswith("module/")})
        optimizer.load_state_dict({"state": _laid_out(state, optimizer), "param_groups": optimizer.state_dict()["param_groups"]})
    except (RuntimeError, ValueError, LookupError) as error:
        why = " ".join(str(error).split())
        raise ArtifactError(f"{path} does not fit the network ({type(error).__name__}: {why}). Delete it to train again from the "
                            "start") from error
    context.runtime.progress(step, total, "continued")
    return step, log


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and facts of a saved training. Raises WeightsError if it is damaged."""
    tensors, facts = read_tensors(path), read_metadata(path)
    if facts.pop("checksum", None) not in (None, checksum(tensors, facts)):   # None: of an older version
        raise WeightsError(f"{path} is not what was written: its checksum differs")
    return tensors, facts


def _laid_out(state: dict[int, dict[str, torch.Tensor]], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, torch.Tensor]]:
    """Restore the memory format of each parameter in its optimiser tensors, which saving loses and fused optimisers need."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: {name: torch.empty_like(parameters[index]).copy_(value) if value.shape == parameters[index].shape else value
                    for name, value in values.items()} for index, values in state.items()}


def make_optimizer(settings: Any, *groups: tuple) -> torch.optim.Optimizer:
    """The optimiser of `settings`; each group is (parameters, factor of the learning rate), and a third value, False, if their
    weight does not decay."""
    parts = [{"params": parameters, "lr": settings.lr * factor, **({} if all(decays) else {"weight_decay": 0.0})}
             for parameters, factor, *decays in groups]
    if settings.optimizer is not OptimizerName.sgd:
        kind = torch.optim.AdamW if settings.optimizer is OptimizerName.adamw else torch.optim.Adam
        return kind(parts, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.SGD(parts, momentum=settings.momentum, weight_decay=settings.weight_decay)
