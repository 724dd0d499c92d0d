"""What ends a training early is told in our words."""

import csv
import os
import signal
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from steps import train_cam
from steps.runtime import networks
from steps.runtime.context import Runtime, StepContext, Stopped
from steps.runtime.gradients import tree_sum
from steps.runtime.training import OptimizerName, Schedule, fit, make_optimizer, poly_lr
from wsss.errors import DataError, WsssError

SETTINGS = SimpleNamespace(optimizer=OptimizerName.sgd, lr=0.1, momentum=0.0, weight_decay=0.0)


def good(epoch, image_id):
    return (torch.ones(2),)


def train(folder, sample=good, loss=None, module=None, settings=SETTINGS, ids="abcd", schedule=None, more=(), counts=None, seed=0, **runtime):
    """The log of a training of two epochs of two batches, or of another `schedule`; `more`: validation and pictures."""
    module = module or torch.nn.Linear(2, 1)
    schedule = Schedule("train_cam", **{"epochs": 2, "batch_size": 2, "lr_factor": poly_lr(0.9), "checkpoint_steps": 1} | (schedule or {}))
    return fit(StepContext("train_cam", settings, None, {"ids": tuple(ids)}, folder, seed=seed, runtime=Runtime(**runtime)), schedule, module,
               make_optimizer(settings, (list(module.parameters()), 1.0)), sample,
               loss or (lambda x, total: {"loss": module(x).mean()}), *more, **({"counts": counts} if counts else {}))


def test_a_training_logs_every_step_and_keeps_its_state(tmp_path):
    assert [line["step"] for line in train(tmp_path) if "loss" in line] == [0, 1, 2, 3]
    (tmp_path / "log.jsonl").unlink()
    assert len(train(tmp_path)) == 6 and (tmp_path / "log.jsonl").exists()   # nothing is trained again; the log is there


def test_the_log_is_a_table_too_and_is_shown_elsewhere(tmp_path):
    module, seen, shown = torch.nn.Linear(2, 1), [], []
    log = train(tmp_path, module=module, more=(lambda: {"val_map": 0.5}, lambda: {"picture": module.training}), track=seen.append,
                show=lambda step, pictures: shown.append((step, pictures())) or True)
    assert seen == log and [step for step, _ in shown] == [1, 2, 3, 4] and module.training
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert len(rows) == len(log) == 6 and [row["step"] for row in rows] == ["0", "1", "2", "2", "3", "4"]
    assert [float(row["loss"]) for row in rows if row["loss"]] == [line["loss"] for line in log if "loss" in line]
    assert [row["val_map"] for row in rows] == ["", "", "0.5", "", "", "0.5"]


def test_the_validation_is_that_of_every_so_many_epochs_and_of_the_last(tmp_path):
    log = train(tmp_path, ids="ab", schedule={"epochs": 5, "val_epochs": 2}, more=(lambda: {"val_map": 0.5},))
    assert [line["step"] for line in log if "val_map" in line] == [2, 4, 5]


def test_dropout_draws_the_same_again_and_when_a_training_is_continued(tmp_path):
    def losses(folder, *stops, seed=0):
        (tmp_path / folder).mkdir(exist_ok=True)
        module, asked = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout()), iter(stops)
        module.load_state_dict({"0.weight": torch.arange(16.0).view(8, 2), "0.bias": torch.zeros(8)})
        try:
            log = train(tmp_path / folder, loss=lambda x, total: {"loss": module(x).square().mean()}, module=module,
                        schedule={"parts": 2}, seed=seed, stop=lambda: next(asked, False))
        except Stopped:
            return losses(folder, seed=seed)
        return [line["loss"] for line in log if "loss" in line], module[0].weight.tolist()
    undisturbed = losses("whole")
    assert losses("again") == losses("parts", False, True) == undisturbed != losses("other", seed=1)


@pytest.mark.parametrize("optimizer", OptimizerName)
def test_a_training_with_channels_last_continues_with_the_same_bits(tmp_path, optimizer):
    settings = SimpleNamespace(optimizer=optimizer, lr=0.1, momentum=0.9, weight_decay=0.01)

    def weights_after(folder, stops):
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.manual_seed(0)
        module, asked = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), iter(stops)
        with suppress(Stopped):
            train(tmp_path / folder, lambda epoch, image_id: (torch.full((3, 5, 5), ord(image_id) - 99.0) + torch.arange(5),),
                  lambda x, total: {"loss": module(x).sigmoid().mean()}, module, settings, stop=lambda: next(asked, False))
        assert module.weight.is_contiguous(memory_format=torch.channels_last)
        return module.weight.detach()

    undisturbed = weights_after("whole", [])
    halfway = weights_after("parts", [False, True])
    assert not torch.equal(undisturbed, halfway) and torch.equal(undisturbed, weights_after("parts", []))


def test_the_parts_are_added_in_a_tree():
    """In float32 a 2 is lost when it is added to 2**25, but the sum of two of them is not."""
    def summed(*numbers):
        order = []

        def part(number, left):
            order.append(number)
            return np.float32(numbers[number]) if left is None else left + np.float32(numbers[number])
        return tree_sum(len(numbers), part, lambda left, right: left + right), order
    assert summed(2**25, 2, 0, 2) == (2**25 + 4, [0, 2, 1, 3])   # (0 + 2) + (1 + 3)
    assert summed(2**25, 0, 2, 2) == summed(2**25, 2, 2, 0) == (2**25, [0, 2, 1, 3])
    assert summed(5) == (5, [0]) and summed(2**25, 2, 2) == (2**25, [0, 2, 1])
    assert summed(*range(11)) == (55, [0, 8, 4, 2, 10, 6, 1, 9, 5, 3, 7])


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_the_parts_of_a_batch_are_learned_together(tmp_path, parts):
    seen, module = [], torch.nn.Linear(2, 1)

    def loss(x, total):
        seen.append((len(x), None if total is None else int(total)))
        return {"loss": module(x).sum() / (total or len(x))}
    log = train(tmp_path, good, loss, module, ids="abcde", schedule={"epochs": 1, "batch_size": 5, "parts": parts},
                counts=lambda x: torch.tensor(len(x)))
    assert seen == {1: [(5, None)], 2: [(3, 5), (2, 5)], 3: [(2, 5), (1, 5), (2, 5)], 9: [(1, 5)] * 5}[parts]   # 3: parts 0, 2, 1
    assert len([line for line in log if "loss" in line]) == 1


@pytest.mark.parametrize("error", [MemoryError("12 GB"), torch.OutOfMemoryError("CUDA out of memory"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 GB")])
def test_too_little_memory(tmp_path, error):
    def loss(x, total):
        raise error
    with pytest.raises(WsssError, match=r"not enough memory for train_cam.batch_size=2 in 1 parts \(.*\). Raise train_cam.parts \(at most one for each image\), or lower"):
        train(tmp_path, good, loss)


def test_a_loss_that_is_not_finite(tmp_path):
    with pytest.raises(WsssError, match="loss is nan at step 0, expected a finite number. Lower train_cam.lr"):
        train(tmp_path, good, lambda x, total: {"loss": (x * torch.nan).mean().requires_grad_()})


def test_a_loader_process_that_is_killed(tmp_path):
    def killed(epoch, image_id):
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(WsssError, match=r"a loader process of workers=1 died \(DataLoader worker .*Lower workers; the same command continues"):
        train(tmp_path, killed, workers=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_named_by_its_image(tmp_path, workers):
    def bad(epoch, image_id):
        raise DataError("it is damaged")
    with pytest.raises(DataError, match="^[abcd]: it is damaged$"):
        train(tmp_path, bad, workers=workers)


@pytest.mark.parametrize(("limit", "expected"), [(None, 10), (10, 10), (4, 4), (1, 1)])
def test_val_is_thinned_evenly(monkeypatch, limit, expected):
    seen = []
    monkeypatch.setattr(networks, "network_input", lambda context, network, image_id: seen.append(image_id) or torch.zeros(1, 2))
    dataset = SimpleNamespace(classes=("a", "b"), label_vector=lambda image_id: np.ones(2, np.float32))
    context = StepContext("train_cam", SimpleNamespace(max_val_images=limit), dataset, {"log": tuple("abcdefghij")}, None)
    assert train_cam.validate(context, torch.nn.Linear(2, 2)) == {"val_map": 1.0}
    assert len(seen) == expected and seen[0] == "a"
