"""Processes that share the batches of a training (here threads of one process): what a single one leaves, bit for bit.

tests/pipeline/test_distributed.py has real processes.
"""

import queue
import threading
from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch

from pipeline import Pipeline
from pipeline.order import BY_NAME
from pipeline.plan.lists import derive_lists
from steps.runtime import training, training_log
from steps.runtime.context import Group, Runtime, Source, StepContext, Stopped, methods_of
from steps.runtime.datasets import open_dataset
from steps.runtime.gradients import RunningStatistics
from steps.runtime.learning_rate import poly_lr
from steps.runtime.schedule import STATE, OptimizerName, Schedule
from steps.runtime.training import fit, make_optimizer
from tests.conftest import SMOKE
from wsss import seeding
from wsss.families import from_facts
from wsss.networks.weights import read_tensors
from wsss.segmenters.upernet import UPerNet


class Threads(Group):
    """One of several threads that exchange through a list, and in pairs through queues."""

    def __init__(self, rank: int, size: int, box: list, pairs: dict, barrier: threading.Barrier):
        self.rank, self.size, self.box, self.pairs, self.barrier = rank, size, box, pairs, barrier

    def all_gather(self, value):
        self.box[self.rank] = value
        self.barrier.wait()
        values = list(self.box)
        self.barrier.wait()
        return values

    def sum(self, tensor):
        values = self.all_gather(tensor.clone())
        return tensor.copy_(torch.stack(values).sum(dim=0))

    def copy(self, tensor, source, target):
        if target is None:
            return tensor.copy_(self.all_gather(tensor.clone())[source])
        if self.rank == source:
            self.pairs[source, target].put(tensor.clone())
        elif self.rank == target:
            tensor.copy_(self.pairs[source, target].get(timeout=60))
        return tensor


def together(size: int, work) -> list:
    """What `work(group)` returns in each of `size` threads."""
    box, pairs, barrier = [None] * size, defaultdict(queue.Queue), threading.Barrier(size, timeout=60)
    found = [None] * size

    def one(rank):
        torch.set_num_threads(1)   # the number of threads is one of each thread
        try:
            found[rank] = work(Threads(rank, size, box, pairs, barrier) if size > 1 else Group())
        except BaseException:
            barrier.abort()
            raise
    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def trained(folder, size: int, parts: int | None, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    """The state after two epochs of two batches of seven images, or after some steps. Every process has the same weights."""
    folder.mkdir(exist_ok=True)
    settings = SimpleNamespace(optimizer=OptimizerName.adamw, lr=0.01, weight_decay=0.05)
    schedule = Schedule("train_cam", 4, 7, poly_lr(0.9), 100, parts)

    def work(group):
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
        draw = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            parameter.data.normal_(generator=draw)

        def sample(epoch, image_id, batch):
            return (torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(100 * epoch + ord(image_id))),)

        def loss(images, total):
            values = module(images).square()
            return {"loss": values.sum() / (total if total is not None else values.numel()), "largest": values.sum() * 1e-3}
        asked = iter([False] * ((stop_after or 100) - 1) + [group.rank == size - 1])   # one process is asked to stop
        context = StepContext("train_cam", settings, None, {"ids": tuple("abcdefghijklmn")}, folder,
                              runtime=Runtime(group=group, stop=lambda: next(asked)))
        with suppress(Stopped):
            fit(context, schedule, module, make_optimizer(settings, (list(module.parameters()), 1.0)), sample, loss,
                counts=lambda images: torch.tensor(4 * 25 * len(images)))
        return module.state_dict()
    networks = together(size, work)
    assert all(torch.equal(network[name], networks[0][name]) for network in networks for name in networks[0])
    return read_tensors(folder / STATE)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("parts", [4, 6, 9])
def test_any_number_of_processes_leaves_the_same_bits(tmp_path, parts):
    """With 9 parts each of the 7 images is one."""
    one = trained(tmp_path / "one", 1, parts)
    logs = {(tmp_path / "one/log.jsonl").read_text()}
    for size in (2, 3, 4):
        assert same(trained(tmp_path / str(size), size, parts), one), size
        logs.add((tmp_path / f"{size}/log.jsonl").read_text())
    assert len(logs) == 1


def test_a_training_continues_with_another_number_of_processes(tmp_path):
    whole = trained(tmp_path / "whole", 1, 4)
    for size, stop_after in ((3, 1), (1, 2), (4, None)):
        state = trained(tmp_path / "parts", size, 4, stop_after)
        assert same(state, whole) == (stop_after is None)
    assert (tmp_path / "parts/log.jsonl").read_text() == (tmp_path / "whole/log.jsonl").read_text()


def test_without_parts_each_process_has_one(tmp_path):
    one, three = trained(tmp_path / "one", 1, None), trained(tmp_path / "three", 3, None)
    assert same(one, trained(tmp_path / "part", 1, 1)) and not same(one, three)
    assert all(torch.allclose(one[name], three[name], atol=1e-5) for name in one)


@pytest.fixture
def one_at_a_time(monkeypatch) -> None:
    """These threads share torch's generator; processes do not."""
    lock = threading.Lock()

    @contextmanager
    def seeded(*what):
        with lock, seeding.seeded(*what):
            yield
    monkeypatch.setattr(training, "seeded", seeded)


@pytest.mark.parametrize("every", [1, 20])
def test_any_number_of_processes_draws_and_logs_the_same(tmp_path, monkeypatch, one_at_a_time, every):
    """A network with dropout, and a layer that is dropped in some steps. Only the first process knows when pictures are due."""
    monkeypatch.setitem(training_log.STEPS_PER_READ, "cpu", every)
    draws = defaultdict(set)

    def work(folder, group):
        folder.mkdir(exist_ok=True)
        with training.seeded(0):   # not between the draws of another thread
            first, last, calls, told = torch.nn.Linear(1, 8), torch.nn.Linear(8, 1), [], []
        for layer in (first, last):
            torch.nn.init.constant_(layer.weight, 0.3), torch.nn.init.zeros_(layer.bias)
        settings = SimpleNamespace(optimizer=OptimizerName.adamw, lr=0.01, weight_decay=0.05)

        def loss(numbers, total):
            calls.append(numbers)
            draw = float(torch.rand(()))
            draws[(len(calls) - 1) * group.size // 4].add(draw)
            hidden = first(numbers)
            return {"loss": last(torch.dropout(hidden, 0.5, True) if draw < 0.5 else hidden).square().sum() / 6}
        runtime = Runtime(group=group, pictures_due=lambda step: group.is_main and step == 5, track=lambda line: told.append(line["step"]),
                          show=lambda step, pictures: told.append(step))
        fit(StepContext("train_cam", settings, None, {"ids": tuple("abcdefghijkl")}, folder, runtime=runtime),
            Schedule("train_cam", 9, 6, poly_lr(0.9), 4, 4), torch.nn.Sequential(first, last),
            make_optimizer(settings, ([*first.parameters(), *last.parameters()], 1.0)),
            lambda epoch, image_id, batch: (torch.rand(1) + len(batch),), loss)
        return told
    for size in (1, 2, 4):
        told = together(size, partial(work, tmp_path / str(size)))
        validations = [2, 4, 6, 8, 9]
        assert told == [sorted([*range(9), *validations, *[5] * (rank == 0)]) for rank in range(size)]
    assert sorted(draws) == [*range(9)] and all(len(found) == 1 for found in draws.values()) and len(set.union(*draws.values())) == 9
    for size in ("2", "4"):
        assert same(read_tensors(tmp_path / size / STATE), read_tensors(tmp_path / "1" / STATE))
        assert (tmp_path / size / "log.jsonl").read_text() == (tmp_path / "1/log.jsonl").read_text()


def trained_upernet(folder, size: int) -> dict[str, torch.Tensor]:
    """The state after three steps on seven images in three parts: with batch norm and dropout in the heads, and dropped paths."""
    folder.mkdir()
    method = UPerNet(width=8, auxiliary_width=8, auxiliary_weight=0.4, dropout=0.5, swin=True)
    backbone = from_facts("backbone", {"method": "timm", "network": "test_convnext", "output_stride": 32, "drop_path": 0.5})
    settings = SimpleNamespace(optimizer=OptimizerName.adamw, lr=0.01, weight_decay=0.05)

    def sample(epoch, image_id, batch):
        draws = torch.Generator().manual_seed(100 * epoch + ord(image_id))
        return torch.randn(3, 40, 33, generator=draws), torch.randint(0, 3, (40, 33), generator=draws).to(torch.uint8)

    def work(group):
        net = made[group.rank]
        context = StepContext("train_seg", settings, None, {"ids": tuple("abcdefg")}, folder, runtime=Runtime(group=group))
        fit(context, Schedule("train_seg", 3, 7, poly_lr(1.0, 0.5), 100, 3), net, make_optimizer(settings, *method.groups(net, 1.0)), sample,
            lambda images, labels, total: method.losses(net, images, labels, total), counts=lambda images, labels: method.counts(labels))
        return net.state_dict()
    made = [method.new(backbone.new("frozen_batch"), 3) for _ in range(size)]   # these threads share torch's generator
    networks = together(size, work)
    assert all(same(network, networks[0]) for network in networks)
    return read_tensors(folder / STATE)


def test_batch_norm_dropout_and_dropped_paths_leave_the_same_bits(tmp_path, one_at_a_time):
    one = trained_upernet(tmp_path / "one", 1)
    tracked = [value for name, value in one.items() if name.startswith("module/head") and name.endswith("num_batches_tracked")]
    assert tracked and all(value == 3 for value in tracked)
    for size in (2, 3):
        assert same(trained_upernet(tmp_path / str(size), size), one), size
        assert (tmp_path / f"{size}/log.jsonl").read_text() == (tmp_path / "one/log.jsonl").read_text()


@pytest.mark.parametrize("momentum", [0.1, 0.3])
def test_the_running_statistics_of_a_step_are_the_mean_over_its_parts(momentum):
    frozen, norm = torch.nn.BatchNorm2d(3).eval(), torch.nn.BatchNorm2d(3, momentum=momentum)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0])), norm.running_var.fill_(4.0)
    draws = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 3, 2, 5, generator=draws) + n for n in (2, 1, 4)]
    statistics, outputs = RunningStatistics(torch.nn.Sequential(frozen, norm)), []
    for number in (2, 0, 1):
        with statistics.of_part(number):
            outputs.append(norm(frozen(parts[number])))
    statistics.average(Group(), 3)
    means = sum(part.mean((0, 2, 3)) for part in parts) / 3 / (1 + 1e-5) ** 0.5   # behind the frozen layer
    variances = sum(part.movedim(1, 0).flatten(1).var(1) for part in parts) / 3 / (1 + 1e-5)
    torch.testing.assert_close(norm.running_mean, (1 - momentum) * torch.tensor([1.0, 2.0, 3.0]) + momentum * means)
    torch.testing.assert_close(norm.running_var, (1 - momentum) * torch.full((3,), 4.0) + momentum * variances)
    assert norm.num_batches_tracked == 1 and frozen.num_batches_tracked == 0 and (frozen.running_var == 1).all()
    torch.testing.assert_close(outputs[0].mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)   # by its own statistics


@pytest.mark.parametrize("shares", sorted({*permutations([2.0**53, 1.0, 1.0, -2.0**53])}))
def test_losses_are_added_in_the_order_of_the_parts(tmp_path, shares):
    """In float64 a 1 is lost when it is added to 2**53."""
    def logged(group):
        log = training_log.TrainingLog(StepContext("train_cam", None, None, {}, tmp_path, runtime=Runtime(group=group)), 4, [])
        log.add_step({"step": 0}, {"loss": torch.tensor(shares[group.rank::group.size], dtype=torch.float64)})
        return log.lines
    [one] = together(1, logged)
    assert one[0]["loss"] == ((shares[0] + shares[1]) + shares[2]) + shares[3] and together(2, logged) == [one] * 2


def first_gradients(name: str, outputs, folder, parts: int | None) -> torch.Tensor:
    """The optimiser's first moments after one step on a batch of 7 images: the gradients times a constant."""
    folder.mkdir()
    config = Pipeline.compose(*SMOKE, f"outputs={outputs}", "device=cpu").config
    dataset = open_dataset(config.data, check=False)
    lists = {"ids": derive_lists(config, dataset)[name]["ids"][:7], "log": ()}
    inputs = {role: (Source(step, {}, outputs / "smoke" / step),)
              for role, step in (("classifier", "train_cam"), ("labels", "cam_to_ir_label"))}
    settings = replace(getattr(config, name), epochs=1, batch_size=7, parts=parts)
    BY_NAME[name].module.run(StepContext(name, settings, dataset, lists, folder, inputs,
                                            methods=methods_of(config, name)))
    state = read_tensors(folder / STATE)
    return torch.cat([value.flatten() for name, value in state.items() if name.endswith(("exp_avg", "momentum_buffer"))])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_cam", "train_irn"])
def test_the_gradients_of_unequal_parts_are_those_of_the_batch(name, smoke_outputs, tmp_path):
    one, several = (first_gradients(name, smoke_outputs, tmp_path / str(parts), parts) for parts in (None, 3))
    assert float((one - several).norm()) < 1e-5 * float(one.norm()) < float("inf") and float(one.norm()) > 0
