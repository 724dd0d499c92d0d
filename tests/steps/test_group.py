"""Processes that share the batches of a training (here threads of one process): gradients and results of a single one."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import Pipeline
from pipeline.plan.lists import derive_lists
from steps import train_cam, train_irn
from steps.runtime import networks
from steps.runtime.context import Group, StepContext
from steps.runtime.datasets import open_dataset
from steps.runtime.training import STATE
from tests.conftest import SMOKE
from wsss.networks.weights import read_tensors


class Threads(Group):
    """One of several threads that exchange through a list."""

    def __init__(self, rank: int, size: int, box: list, barrier: threading.Barrier):
        self.rank, self.size, self.box, self.barrier = rank, size, box, barrier

    def all_gather(self, value):
        self.box[self.rank] = value
        self.barrier.wait()
        values = list(self.box)
        self.barrier.wait()
        return values

    def sum(self, tensor):
        values = self.all_gather(tensor.clone())
        return tensor.copy_(torch.stack(values).sum(dim=0))

    def broadcast(self, make):
        return self.all_gather(make() if self.is_main else None)[0]


def contexts(step: str, outputs, folder, size: int, accumulate: int = 1) -> list[StepContext]:
    config = Pipeline.compose(*SMOKE, f"outputs={outputs}", "device=cpu").config
    dataset = open_dataset(config.data, check=False)
    run, settings = outputs / "smoke", replace(getattr(config, step), epochs=1, batch_size=7, checkpoint_steps=1,
                                                accumulate=accumulate)
    lists = {"ids": derive_lists(config, dataset)[step]["ids"][:7], "val": ()}   # one batch of 7: unequal parts
    inputs = {name: run / name for name in ("train_cam", "cam_to_ir_label")}
    box, barrier = [None] * size, threading.Barrier(size, timeout=120)
    return [StepContext(settings=settings, dataset=dataset, lists=lists, folder=folder, inputs=inputs, model=config.model,
                        group=Threads(rank, size, box, barrier) if size > 1 else Group()) for rank in range(size)]


def states(step, calls: list[tuple[int, int]], outputs, tmp_path, monkeypatch) -> list[dict[str, torch.Tensor]]:
    """What a training leaves after one step, for each (number of processes, parts of a batch)."""
    found, lock = [], threading.Lock()
    new = {train_cam: "new_classifier", train_irn: "new_irn"}[step]
    build = getattr(networks, new)

    def one_after_the_other(context):   # torch's generator, which draws the weights, is one for all threads
        with lock:
            network = build(context)
        context.runtime.group.all_gather(None)
        return network
    monkeypatch.setattr(networks, new, one_after_the_other)
    for size, parts in calls:
        folder = tmp_path / f"{size}-{parts}"
        folder.mkdir()
        failed = []

        def work(context, failed=failed):
            try:
                step.run(context)
            except BaseException as error:
                failed.append(error)
                raise
        threads = [threading.Thread(target=work, args=(context,))
                   for context in contexts(step.__name__.split(".")[1], outputs, folder, size, parts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        found.append(read_tensors(folder / STATE))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("step", [train_cam, train_irn], ids=["train_cam", "train_irn"])
@pytest.mark.parametrize("other", [(2, 1), (3, 1), (1, 3), (2, 4)], ids=lambda other: "{} processes, {} parts".format(*other))
def test_the_gradients_of_the_first_step(step, other, smoke_outputs, tmp_path, monkeypatch):
    """The optimiser's first moment after one step is its gradient times a constant."""
    one, several = states(step, [(1, 1), other], smoke_outputs, tmp_path, monkeypatch)
    moments = [name for name in one if name.endswith(("exp_avg", "momentum_buffer"))]
    assert moments
    gradients = [torch.cat([state[name].flatten() for name in moments]) for state in (one, several)]
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-5
    assert np.isfinite(gradients[1].numpy()).all() and float(gradients[0].norm()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("step", [train_cam, train_irn], ids=["train_cam", "train_irn"])
def test_one_process_and_two_that_cut_a_batch_alike_leave_the_same_bits(step, smoke_outputs, tmp_path, monkeypatch):
    one, two = states(step, [(1, 2), (2, 2)], smoke_outputs, tmp_path, monkeypatch)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
