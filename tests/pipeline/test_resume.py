"""A step that was interrupted, by an exception or by SIGKILL of the real process, continues to identical bytes."""

import signal
from pathlib import Path

import pytest
import torch

from pipeline import Pipeline
from pipeline.order import STEPS
from steps.step import TRAINING
from tests import processes
from tests.conftest import SMOKE, actions, contents, copied, interrupted, remove
from wsss.refinement import ir_label as ir_labels

FLAGS = {row.name: row.flag for row in STEPS if row.reads or row.KIND == TRAINING}   # not maps from files
ELSEWHERE = ("eval_faithfulness", "eval_loc", "train_recam", "train_amn", "make_amn", "make_amn_lpcam", "eval_amn", "amn_ir_label", "affinity_label", "train_psa", "train_seg", "infer_seg", "eval_seg", "train_seg_gt", "infer_seg_gt", "eval_seg_gt")
# After this many reports of progress the step is interrupted: in the middle of its work.
AFTER = {"train_cam": 25, "make_cam": 9, "make_lpcam": 15, "eval_cam": 9, "cam_to_ir_label": 9, "train_irn": 3,
         "make_sem_seg_labels": 12, "eval_sem_seg": 9, "make_ins_seg_labels": 9, "eval_ins_seg": 9}
WITH_INSTANCES = f"steps=[{','.join(AFTER)}]"


@pytest.fixture(scope="session")
def instance_outputs(smoke_outputs, made_once) -> Path:
    """The finished run with the two steps of the instance branch besides: never changed."""
    def make(outputs: Path) -> None:
        Pipeline.compose(*SMOKE, f"outputs={copied(smoke_outputs, outputs)}", WITH_INSTANCES).run()
    return made_once("instances", make)


@pytest.fixture
def outputs(instance_outputs, tmp_path) -> Path:
    """As in tests/conftest.py, of the run with instances."""
    return copied(instance_outputs, tmp_path / "outputs")


@pytest.fixture
def overrides(step) -> tuple[str, ...]:
    """What the call of the finished run needs besides, for a step that is not among the default ones."""
    return (WITH_INSTANCES,) if step.endswith(("_ins_seg", "_ins_seg_labels")) else ()


@pytest.mark.parametrize("step", [step for step in FLAGS if step not in ELSEWHERE])   # in files of their own
def test_an_exception_in_the_middle(step, overrides, smoke, outputs):
    before = remove(outputs, step)
    with interrupted(AFTER[step]):
        smoke(*overrides).run()
    assert not (outputs / "smoke" / step).exists()
    assert actions(smoke(*overrides))[step] == "continue"
    smoke(*overrides).run()
    assert contents(outputs / "smoke" / step) == before
    assert set(actions(smoke(*overrides)).values()) == {"skip"}


def test_an_image_that_is_made_later_is_computed_with_as_many_threads(smoke, outputs, monkeypatch):
    """Sums depend on that number. Two threads work on two images at once, also where only one is left."""
    threads, whole = [], ir_labels.ir_label

    def counted(*args, **more):
        threads.append(torch.get_num_threads())
        return whole(*args, **more)
    monkeypatch.setattr(ir_labels, "ir_label", counted)
    remove(outputs, "cam_to_ir_label")
    before = torch.get_num_threads()
    try:
        pipeline = smoke("threads=2", "to_step=cam_to_ir_label")
        pipeline.run()
        made = contents(outputs / "smoke/cam_to_ir_label")
        (outputs / "smoke/cam_to_ir_label/train_0003.png").unlink()
        smoke("threads=2", "to_step=cam_to_ir_label").run()
    finally:
        torch.set_num_threads(before)
    assert threads == [1] * (len(pipeline.dataset.lists["train"]) + 1)
    assert contents(outputs / "smoke/cam_to_ir_label") == made


KILLED = """
import os, signal, sys
from pipeline import Pipeline
from pipeline.console import Console

calls = []
def die(*args):
    calls.append(args)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

Console.progress = die
Pipeline.compose(*sys.argv[2:]).run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [step for step in FLAGS if step not in ELSEWHERE])
def test_sigkill_in_the_middle(step, overrides, smoke, outputs):
    before = remove(outputs, step)
    killed = processes.run("-c", KILLED, str(AFTER[step]), *SMOKE, f"outputs={outputs}", *overrides)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (outputs / "smoke" / step).exists()
    smoke(*overrides).run()
    assert contents(outputs / "smoke" / step) == before


@pytest.mark.parametrize("step", [pytest.param("train_cam", marks=pytest.mark.slow), "make_cam"])
def test_sigterm_saves_and_says_how_to_go_on(step, smoke, outputs):
    before = remove(outputs, step)
    code = KILLED.replace("SIGKILL", "SIGTERM").replace("Pipeline.compose(*sys.argv[2:]).run()", "from pipeline.commandline import act\nsys.exit(act(Pipeline.compose(*sys.argv[2:])))")
    stopped = processes.run("-c", code, "6", *SMOKE, f"outputs={outputs}")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert "the same command continues" in stopped.stderr
    smoke().run()
    assert contents(outputs / "smoke" / step) == before


@pytest.mark.parametrize(("step", "after"), [
    pytest.param("make_lpcam", 3, marks=pytest.mark.slow), pytest.param("make_lpcam", 12, marks=pytest.mark.slow), ("cam_to_ir_label", 5)])
def test_sigkill_in_the_middle_of_a_write(step, after, smoke, outputs):
    """The file is there under its temporary name when the process dies: after 3 writes make_lpcam still clusters."""
    before = remove(outputs, step)
    code = KILLED.replace("Console.progress = die", "os.fsync = die")
    killed = processes.run("-c", code, str(after), *SMOKE, f"outputs={outputs}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((outputs / "smoke").rglob("*.tmp"))
    smoke().run()
    assert contents(outputs / "smoke" / step) == before


def test_a_kill_between_the_two_renames_of_a_finished_step(smoke, outputs):
    run = outputs / "smoke"
    (run / "make_cam").rename(run / f"make_cam.partial-{smoke().plan()[1].fingerprint[:12]}")
    smoke("eval_cam_pass=true", "force=true").run()
    assert set(actions(smoke()).values()) == {"skip"} and not list(run.glob("*.partial-*"))
