"""What ends a training early is told in our words."""

import csv
import json
import os
import signal
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import Pipeline
from steps import train_cam
from steps.parts.outcome import Outcome
from steps.runtime import networks, training_log
from steps.runtime.context import Group, Runtime, StepContext, Stopped
from steps.runtime.gradients import tree_sum
from steps.runtime.learning_rate import poly_lr
from steps.runtime.schedule import epochs_of, saved_step, total_steps
from steps.runtime.training import OptimizerName, Schedule, fit, make_optimizer, train_step
from tests.conftest import SMOKE, contents, interrupted
from wsss.classifiers.plain import Plain
from wsss.errors import DataError, WsssError
from wsss.seeding import derived_seed, generator, seeded

SETTINGS = SimpleNamespace(optimizer=OptimizerName.sgd, lr=0.1, momentum=0.0, weight_decay=0.0)


def good(epoch, image_id, batch):
    return (torch.ones(2),)


def train(folder, sample=good, loss=None, module=None, settings=SETTINGS, ids="abcd", schedule=None, more=(), counts=None, seed=0, **runtime):
    """The log of a training of two epochs of two batches, or of another `schedule`; `more`: validation and pictures."""
    module = module or torch.nn.Linear(2, 1)
    schedule = Schedule("train_cam", **{"steps": 4, "batch_size": 2, "lr_factor": poly_lr(0.9), "checkpoint_steps": 1} | (schedule or {}))
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
                pictures_due=lambda step: step != 2, show=lambda step, pictures: shown.append((step, pictures)))
    assert seen == log and shown == [(step, {"picture": True}) for step in (1, 3, 4)] and module.training
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert len(rows) == len(log) == 6 and [row["step"] for row in rows] == ["0", "1", "2", "2", "3", "4"]
    assert [float(row["loss"]) for row in rows if row["loss"]] == [line["loss"] for line in log if "loss" in line]
    assert [row["val_map"] for row in rows] == ["", "", "0.5", "", "", "0.5"]


def test_the_validation_is_that_of_every_so_many_epochs_and_of_the_last(tmp_path):
    log = train(tmp_path, ids="ab", schedule={"steps": 5, "val_epochs": 2}, more=(lambda: {"val_map": 0.5},))
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


def test_dropout_is_the_same_after_a_kill_and_the_global_random_state_is_unchanged(tmp_path):
    """Killed after step 5, when the last saved state is that after step 3: steps 3 and 4 are done again."""
    def weights(folder, kill_at=None, workers=0):
        (tmp_path / folder).mkdir(exist_ok=True)
        module, done = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1)), []
        torch.nn.init.constant_(module[0].weight, 0.5)
        torch.nn.init.constant_(module[2].weight, 0.1)
        module[0].bias.data.zero_(), module[2].bias.data.zero_()

        def loss(x, total):
            done.append(x)
            if len(done) == kill_at:
                raise KeyboardInterrupt
            return {"loss": module(x).square().mean()}
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        with suppress(KeyboardInterrupt):
            train(tmp_path / folder, lambda epoch, image_id, batch: (torch.rand(2),), loss, module, ids="abcdefg",
                  schedule={"steps": 8, "checkpoint_steps": 3, "parts": 2}, workers=workers)
        assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]
        return [value.tolist() for value in module.state_dict().values()]
    whole = weights("whole")
    assert weights("killed", kill_at=11) != whole == weights("killed") == weights("workers", workers=2)
    assert (tmp_path / "killed/log.jsonl").read_text() == (tmp_path / "workers/log.jsonl").read_text() == (tmp_path / "whole/log.jsonl").read_text()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_draw_of_the_network_is_one_of_the_step_and_a_draw_of_a_sample_one_of_the_image(tmp_path, parts):
    module, of_step, of_sample, backward = torch.nn.Linear(1, 1), [], {}, []

    def sample(epoch, image_id, batch):
        of_sample[epoch, image_id] = float(torch.rand(()))
        return (torch.ones(1),)

    def loss(x, total):
        of_step.append(float(torch.rand(())))
        value = module(x)
        value.register_hook(lambda gradient: backward.append(float(torch.rand(()))))
        return {"loss": value.mean()}
    train(tmp_path, sample, loss, module, ids="abcdefgh", schedule={"batch_size": 4, "parts": parts})
    assert len(of_step) == 4 * parts and len(set(of_step)) == len(set(backward)) == 4
    assert len(set(of_sample.values())) == len(of_sample) == 16
    for epoch, image_id in of_sample:
        with seeded(derived_seed(0, "train_cam", epoch, image_id)):
            assert of_sample[epoch, image_id] == float(torch.rand(()))
    for step in range(4):
        with seeded(derived_seed(0, "train_cam", "network", step)):
            assert of_step[parts * step:parts * step + parts] == [float(torch.rand(()))] * parts


@pytest.mark.parametrize(("parts", "workers"), [(1, 0), (2, 0), (3, 1)])
def test_a_sample_knows_its_whole_batch(tmp_path, parts, workers):
    seen = []

    def loss(numbers, batch, total):
        seen.append((numbers.tolist(), batch.tolist()))
        return {"loss": module(numbers[:, None].float()).mean()}
    module = torch.nn.Linear(1, 1)
    train(tmp_path, lambda epoch, image_id, batch: (torch.tensor(ord(image_id)), torch.tensor([ord(other) for other in batch])), loss,
          module, ids="abcdefgh", schedule={"batch_size": 3, "parts": parts}, workers=workers)
    assert len(seen) == 4 * parts
    for step in range(4):
        found = {tuple(batch) for numbers, batches in seen[parts * step:parts * step + parts] for batch in batches}
        members = [number for numbers, _ in seen[parts * step:parts * step + parts] for number in numbers]
        assert len(found) == 1 and sorted(found.pop()) == sorted(members) and len(members) == 3
    if parts == 1:
        assert all(numbers == batch for numbers, batches in seen for batch in batches)   # in order


class CutMix:
    """Half of a partner from the same batch takes the place of half of the image."""

    def members(self, image_id, batch, labels, draws):
        return image_id, batch[draws.integers(len(batch))]

    def mix(self, samples, draws):
        (image, label), (other, other_label) = samples
        keep = torch.arange(image.shape[-1]) < draws.integers(1, image.shape[-1])
        return torch.where(keep, image, other), label * keep.float().mean() + other_label * (1 - keep.float().mean())


class Pairs:
    """An image and another one of the list that shares a class with it."""

    def members(self, image_id, batch, labels, draws):
        others = [name for name in labels if name != image_id and set(labels[name]) & set(labels[image_id])]
        return image_id, others[draws.integers(len(others))]

    def mix(self, samples, draws):
        return (*samples[0], *samples[1])


LABELS = {name: (i % 2,) for i, name in enumerate("abcdefgh")} | {"v": (0,), "w": (1,)}   # v and w are in another list


def samples_of(method, seen=None):
    """The samples of a method: the image of an id holds its number, plus a draw."""
    dataset = SimpleNamespace(labels=LABELS, label_vector=lambda image_id: np.eye(2, dtype=np.float32)[LABELS[image_id][0]])

    def view(image_id, draws):
        if seen is not None:
            seen.append(image_id)
        return torch.full((1, 8), ord(image_id) + draws.random()), torch.from_numpy(dataset.label_vector(image_id))
    return train_cam._sample(StepContext("train_cam", None, dataset, {"ids": tuple("abcdefgh")}, None, seed=3), method, view)


def test_by_default_a_sample_is_one_image_with_the_draws_of_its_epoch_and_id():
    image, label = samples_of(Plain(loss="soft_margin"))(1, "c", tuple("abc"))
    assert torch.equal(image, torch.full((1, 8), ord("c") + generator(3, "train_cam", 1, "c").random())) and label.tolist() == [1, 0]


def test_a_method_may_take_a_partner_of_the_batch_or_of_the_whole_list():
    for method, allowed in ((CutMix(), "bdf"), (Pairs(), "abcdefgh")):
        seen = []
        sample = samples_of(method, seen)
        first = [sample(epoch, "b", tuple("bdf")) for epoch in range(40)]
        assert seen[::2] == ["b"] * 40 and {*seen[1::2]} == ({*allowed} if isinstance(method, CutMix) else {*"dfh"})
        again = [sample(epoch, "b", tuple("bdf")) for epoch in range(40)]
        assert all(torch.equal(one, other) for old, new in zip(first, again) for one, other in zip(old, new, strict=True))
    assert len(first[0]) == 4


@pytest.mark.parametrize("method", [CutMix(), Pairs()])
def test_a_training_with_samples_of_several_images_continues_with_the_same_bits(tmp_path, method):
    def weights(folder, *stops, workers=0):
        (tmp_path / folder).mkdir(exist_ok=True)
        module, asked = torch.nn.Linear(8, 2), iter(stops)
        module.load_state_dict({"weight": torch.zeros(2, 8), "bias": torch.zeros(2)})

        def loss(images, labels, *rest):
            return {"loss": torch.nn.functional.multilabel_soft_margin_loss(module(images[:, 0] / 100), labels)}
        with suppress(Stopped):
            train(tmp_path / folder, samples_of(method), loss, module, ids="abcdefgh", workers=workers, stop=lambda: next(asked, False))
        return module.weight.tolist()
    whole = weights("whole")
    assert weights("parts", False, True) != whole == weights("parts") == weights("workers", workers=2)


@pytest.mark.parametrize("stop_after", range(1, 6))
def test_a_training_of_some_steps_ends_within_an_epoch(tmp_path, stop_after):
    def log(folder, *stops, **more):
        (tmp_path / folder).mkdir(exist_ok=True)
        module, asked, told = torch.nn.Linear(2, 1), iter(stops), []
        torch.nn.init.zeros_(module.weight), torch.nn.init.zeros_(module.bias)
        with suppress(Stopped):
            train(tmp_path / folder, module=module, schedule={"steps": 5}, more=(lambda: {"val_map": 0.5},), stop=lambda: next(asked, False),
                  progress=lambda step, total, note: told.append((step, total)), **more)
        return [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()], told
    whole, told = log("whole")
    assert [line["epoch"] for line in whole if "loss" in line] == [0, 0, 1, 1, 2] and told == [(step, 5) for step in range(1, 6)]
    assert [(line["step"], line["epoch"]) for line in whole if "val_map" in line] == [(2, 0), (4, 1), (5, 2)]
    log("parts", *[False] * (stop_after - 1), True)
    assert saved_step(tmp_path / "parts") == stop_after
    for _ in range(2):   # the second call finds a finished training
        assert log("parts", workers=1)[0] == whole


@pytest.mark.parametrize(("settings", "n_ids", "steps", "epochs"), [
    ({"epochs": 3}, 10, 6, 3), ({"epochs": 3}, 3, 3, 3), ({}, 10, 8, 4), ({"min_steps": 9}, 10, 10, 5),
    ({"steps": 5}, 10, 5, 2.5), ({"steps": 6}, 10, 6, 3), ({"steps": 1}, 12, 1, 0.33)])
def test_the_length_of_a_training(settings, n_ids, steps, epochs):
    settings = SimpleNamespace(**{"batch_size": 4, "epochs": None, "steps": None, "min_epochs": 4, "min_steps": 0} | settings)
    assert total_steps(settings, n_ids) == steps and epochs_of(settings, n_ids) == epochs
    assert type(epochs_of(settings, n_ids)) is type(epochs)


def test_a_run_of_some_steps_on_crops_of_any_size_is_planned_and_continued_as_such(tmp_path):
    """Three steps are an epoch."""
    def pipeline(name, *words):
        return Pipeline.compose(*SMOKE, f"outputs={tmp_path}", f"name={name}", "to_step=train_cam", "train_cam.epochs=null", "train_cam.steps=7",
                                "train_cam.crop_size=50", "train_cam.checkpoint_steps=2", *words)

    def planned(name):
        step = pipeline(name).plan()[0]
        return step.done, step.total, step.action
    assert planned("parts") == (0, 7, "run")
    with interrupted(6):
        pipeline("parts").run()
    assert planned("parts") == (4, 7, "continue")
    for name in ("parts", "whole"):
        pipeline(name).run()
        assert planned(name) == (7, 7, "skip")
        result = json.loads((tmp_path / name / "train_cam/manifest.json").read_text())["result"]
        assert (result["steps"], result["epochs"]) == (7, 2.33)
    assert contents(tmp_path / "parts/train_cam") == contents(tmp_path / "whole/train_cam")


@pytest.mark.slow
def test_irn_trains_on_crops_that_are_no_multiple_of_its_backbones_stride(smoke):
    pipeline = smoke("to_step=train_irn", "replace=true", "train_irn.crop_size=100", "train_irn.epochs=null", "train_irn.steps=2")
    pipeline.run()
    lines = [json.loads(line) for line in (pipeline.config.folder / "train_irn/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [0, 1]


@pytest.mark.parametrize(("settings", "result", "wanted"), [
    ({"train.steps": 50}, {"epochs": 2.33}, ("train.steps", 100)), ({"train.steps": None}, {"epochs": 5}, ("train.epochs", 10)),
    ({"train.epochs": 3}, {}, ("train.epochs", 6)), ({}, {}, ("train.epochs", 8))])
def test_the_advice_to_train_longer_names_the_setting_in_use(settings, result, wanted):
    assert Outcome({}, {"train": result}, settings.get, str).longer("train", 4) == wanted


class Counting(Group):
    """Counts the losses in each message."""

    def __init__(self):
        self.messages = []

    def sum(self, tensor):
        if tensor.dtype is torch.float64:
            self.messages.append(len(tensor))
        return tensor


def unfinished(at):
    """A loss that is infinite at step `at`, and its module."""
    module, done = torch.nn.Linear(2, 1), []
    torch.nn.init.ones_(module.weight), torch.nn.init.zeros_(module.bias)

    def loss(x, total):
        done.append(x)
        return {"loss": module(x).mean() * (torch.inf if len(done) == at + 1 else 1), "other": x.sum()}
    return {"module": module, "loss": loss}


def test_losses_are_read_once_in_a_while_and_the_log_is_the_same(tmp_path, monkeypatch):
    def files(every, reads):
        (tmp_path / str(every)).mkdir()
        monkeypatch.setitem(training_log.STEPS_PER_READ, "cpu", every)
        group, told, notes = Counting(), [], []
        log = train(tmp_path / str(every), ids="ab", schedule={"steps": 50, "checkpoint_steps": 40, "val_epochs": 35}, group=group,
                    more=(lambda: {"val_map": 0.5}, dict), track=lambda line: told.append((line["step"], "loss" in line)),
                    pictures_due=lambda step: step in (7, 14), show=lambda step, pictures: told.append((step, "pictures")),
                    progress=lambda step, total, note: notes.append(note), **unfinished(99))
        assert group.messages == [2 * steps for steps in reads] and [line["step"] for line in log if "loss" in line] == [*range(50)]
        assert [step for step, _ in told] == sorted(step for step, _ in told) and told.index((6, True)) < told.index((7, "pictures"))
        assert notes[-1].startswith(f"loss {log[-2]['loss']:.4f}")
        return [(tmp_path / str(every) / name).read_bytes() for name in ("log.jsonl", "log.csv", "state.safetensors")]
    assert files(1, [1] * 50) == files(20, [7, 7, 20, 1, 5, 10])   # pictures after 7 and 14 steps, a validation after 35, a save after 40


def test_a_step_does_not_wait_for_its_losses(tmp_path):
    """Its operations copy no number to the host: on a GPU each copy waits for all work before it."""
    seen = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))
    parts = unfinished(99)
    context = StepContext("train_cam", SETTINGS, None, {"ids": tuple("abcd")}, tmp_path)
    schedule = Schedule("train_cam", 4, 4, poly_lr(0.9), 1, 4)
    with Recorder():
        found = train_step(context, schedule, parts["module"], make_optimizer(SETTINGS, (list(parts["module"].parameters()), 1.0)),
                           parts["loss"], [[torch.full((1, 2), number)] for number in (1.0, 2.0, 3.0, 4.0)])
    assert {name: value.tolist() for name, value in found.items()} == {"loss": [2.0, 4.0, 6.0, 8.0], "other": [2.0, 4.0, 6.0, 8.0]}
    assert "addmm" in seen and not seen & {"_local_scalar_dense", "copy_", "item", "nonzero", "equal"}


@pytest.mark.parametrize(("steps", "stops"), [(8, ()), (20, (False,) * 11 + (True,))])
def test_a_loss_that_is_not_finite_is_found_before_anything_is_saved(tmp_path, monkeypatch, steps, stops):
    monkeypatch.setitem(training_log.STEPS_PER_READ, "cpu", 20)
    asked, told = iter(stops), []
    with pytest.raises(WsssError, match="loss is inf at step 5, expected a finite number. Lower train_cam.lr"):
        train(tmp_path, ids="ab", schedule={"steps": 99, "checkpoint_steps": steps, "val_epochs": 99}, stop=lambda: next(asked, False),
              track=told.append, **unfinished(5))
    assert not list(tmp_path.iterdir()) and [line["step"] for line in told] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("optimizer", OptimizerName)
def test_a_training_with_channels_last_continues_with_the_same_bits(tmp_path, optimizer):
    settings = SimpleNamespace(optimizer=optimizer, lr=0.1, momentum=0.9, weight_decay=0.01)

    def weights_after(folder, stops):
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.manual_seed(0)
        module, asked = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), iter(stops)
        with suppress(Stopped):
            train(tmp_path / folder, lambda epoch, image_id, batch: (torch.full((3, 5, 5), ord(image_id) - 99.0) + torch.arange(5),),
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
    log = train(tmp_path, good, loss, module, ids="abcde", schedule={"steps": 1, "batch_size": 5, "parts": parts},
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
    def killed(epoch, image_id, batch):
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(WsssError, match=r"a loader process of workers=1 died \(DataLoader worker .*Lower workers; the same command continues"):
        train(tmp_path, killed, workers=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_named_by_its_image(tmp_path, workers):
    def bad(epoch, image_id, batch):
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
