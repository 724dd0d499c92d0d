"""What a run prints, on a terminal and elsewhere, and its log."""

import logging
import os
import pty
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from rich.progress import Progress

from pipeline import Pipeline, console
from pipeline.commandline import act
from pipeline.console import Console, plan_table
from pipeline.order import BY_NAME
from pipeline.plan.changes import changes
from pipeline.plan.expect import Expected
from pipeline.plan.plan import PlannedStep
from wsss.errors import StorageError


def work(level: str) -> None:
    terminal = Console(level)
    terminal.start("make_cam")
    for done in range(1, 6):
        terminal.progress("make_cam", done, 5, "images")
        if done == 3:
            terminal.warning("make_cam: something is odd")
        time.sleep(0.25)
    terminal.finish("make_cam", 1.5)
    terminal.start("train_cam")
    terminal.progress("train_cam", 1, 9, "loss 0.5")
    terminal.result("the end")


def on_a_terminal(level: str = "info", errors: Path | None = None) -> str:
    """What a terminal is sent by `work` in a process of its own; `errors`: a file for its standard error."""
    child, mine = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm", "COLUMNS": "120"}
        if errors:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        work(level)
        os._exit(0)
    sent = b""
    with suppress(OSError):   # the other end is closed
        while chunk := os.read(mine, 65536):
            sent += chunk
    os.close(mine)
    assert os.waitpid(child, 0)[1] == 0
    return sent.decode()


def screen(sent: str) -> list[str]:
    """The lines that stay on a terminal which knows: carriage return, new line, erase the line, up; colours do nothing."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", sent):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part.startswith("\x1b["):
            row -= int(part[2:-1] or 1) if part.endswith("A") else 0
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part):]
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]


def test_a_terminal_shows_one_line_a_step_and_keeps_what_counts():
    sent = on_a_terminal()
    drawn = re.sub(r"\x1b\[\??[\d;]*[A-Za-z]", "", sent)
    assert re.search(r"make_cam [━╸╺ ]+ 4/5, images, \d\.\d/s, 0\.\d s left", drawn) and "train_cam" in drawn
    assert screen(sent) == ["warning: make_cam: something is odd", "  make_cam: done in 1.5 s", "the end"]
    assert re.findall(r"\x1b\[\?25[lh]", sent)[-1] == "\x1b[?25h"   # the cursor is there

    hidden, shown = sent.find("\x1b[?25l"), sent.find("\x1b[?25h")
    assert 0 <= hidden < shown < sent.find("odd")   # at once, not at the end


def test_errors_go_where_they_are_sent(tmp_path):
    sent = on_a_terminal(errors=tmp_path / "errors")
    assert "odd" not in sent and (tmp_path / "errors").read_text() == "warning: make_cam: something is odd\n"


@pytest.mark.parametrize(("level", "kept"), [("warning", ["warning: make_cam: something is odd", "the end"]), ("error", ["the end"])])
def test_quiet(level, kept):
    assert screen(on_a_terminal(level)) == kept


def test_elsewhere_plain_lines_every_few_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    plain = Console()
    plain.start("make_cam")
    for done in range(1, 13):
        now[0] += 1
        plain.progress("make_cam", done, 200, "images")
    assert capsys.readouterr().out == "  make_cam: 5/200, images, 1.0/s, 3 min left\n  make_cam: 10/200, images, 1.0/s, 3 min left\n"
    now[0] += 600
    plain.progress("make_cam", 13, 200, "images")
    assert capsys.readouterr().out == "  make_cam: 13/200, images, 50.9 s each, 2.6 h left\n"
    verbose = Console("debug")
    verbose.start("make_cam")
    for done in range(1, 4):
        verbose.progress("make_cam", done, 3, "images")
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_log_holds_what_is_not_printed_and_is_appended(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "EVERY_SECONDS", 0.0)
    for command in ("first", "second"):
        quiet = Console("error")
        quiet.log_to(tmp_path / "run.log", command)
        quiet.start("make_cam")
        quiet.progress("make_cam", 1, 2, "images")
        quiet.warning("odd")
        quiet.result("a table\n  of two lines")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line[20:] for line in lines[5:]] == ["info    --- second", "info      make_cam: 1/2, images", "warning odd", "info    a table",
                                                 "info      of two lines"]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d info    --- first$", lines[0]) and len(lines) == 10
    assert capsys.readouterr().err == ""
    with pytest.raises(StorageError, match="cannot be written"):
        quiet.log_to(tmp_path / "no/run.log", "x")


def test_a_run_leaves_a_log_and_says_what_changed(smoke, outputs, capsys):
    log = outputs / "smoke/run.log"
    log.unlink()
    (outputs / "smoke/make_sem_seg_labels/threshold.json").unlink()   # made again
    assert act(smoke()) == 0
    assert "against the last run of this folder: nothing changed" in capsys.readouterr().out
    assert act(smoke("make_sem_seg_labels.bg_threshold=0.9")) == 0
    out = capsys.readouterr().out
    assert "against the last run of this folder: changed: make_sem_seg_labels, eval_sem_seg\n" in out
    assert re.search(r"  pseudo masks: mIoU \S+ -> \S+ \([+-]\S+\), threshold \S+ -> 0.90\n", out) and "  CAM: " not in out
    text = log.read_text()
    assert text.count(" info    --- python run_pipeline.py experiment=smoke ") == 2 and "make_sem_seg_labels: done in" in text
    assert "-> 0.90" in text and "All results are in" in text


@pytest.mark.parametrize(("level", "printed"), [("warning", True), ("error", False)])
@pytest.mark.parametrize("call", [act, Pipeline.run], ids=["command line", "Python"])
def test_a_warning_of_the_data_set_is_said_as_all_others(smoke, outputs, capsys, call, level, printed):
    """It is given before the run has a log, and by `logging`, as the science knows no console."""
    next(outputs.glob(".data/*/images")).joinpath("notes.txt").touch()
    pipeline, log = smoke(f"log_level={level}"), outputs / "smoke/run.log"
    log.unlink()
    call(pipeline)
    errors = capsys.readouterr().err
    assert errors.count("warning: ") == errors.count("images: ignored 1 entries that are not") == printed
    assert re.search(r"info    --- python run_pipeline.py .*\n\S+ \S+ warning .*images: ignored 1 entries that", log.read_text())
    assert not logging.getLogger("wsss").handlers


def test_a_failure_stands_in_the_log_with_its_traceback(smoke, outputs, monkeypatch):
    (outputs / "smoke/eval_sem_seg/scores.json").unlink()
    from steps import eval_sem_seg
    monkeypatch.setattr(eval_sem_seg, "run", lambda context: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        smoke().run()
    assert "error   ZeroDivisionError: division by zero" in (outputs / "smoke/run.log").read_text()


def test_changes_of_summaries_that_cannot_be_compared():
    now = {"steps": {"train_cam": {"fingerprint": "a"}, "make_cam": {"fingerprint": "b"}}, "eval_cam": None}
    assert changes(None, now) == [] == changes({}, now) == changes([1], now)
    assert changes({"steps": {"train_cam": {"fingerprint": "c"}}}, now) == [
        "against the last run of this folder: changed: train_cam; new: make_cam; the same scores"]


class Screen:
    """A terminal that swallows everything."""

    def isatty(self):
        return True

    def write(self, text):
        return len(text)

    def flush(self):
        pass


def test_a_signal_may_warn_while_a_line_is_drawn(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Screen())
    terminal, update = Console(), Progress.update

    def interrupted(self, *args, **options):
        terminal.warning("SIGINT: saving, then stopping")
        update(self, *args, **options)
    monkeypatch.setattr(Progress, "update", interrupted)
    terminal.start("train_cam")
    for done in (1, 2, 3):
        terminal.progress("train_cam", done, 9, "loss 0.5")
    terminal.finish("train_cam", 1)
    assert capsys.readouterr().err.count("SIGINT") == 3


def test_drawing_costs_little(monkeypatch):
    """A progress call a step must not slow a training: here 20,000 of them."""
    monkeypatch.setattr(sys, "stdout", Screen())
    terminal, start = Console(), time.process_time()
    terminal.start("train_cam")
    for done in range(20_000):
        terminal.progress("train_cam", done, 20_001, "loss 0.5")
    assert time.process_time() - start < 5


def planned(name: str, expected: Expected | None) -> PlannedStep:
    return PlannedStep(BY_NAME[name], {}, {}, {}, "absent", total=8, action="run" if expected else "skip", expected=expected)


def test_what_a_step_needs_may_be_unknown(tmp_path):
    """The sums skip it, and the last line says so."""
    known, unknown = Expected(60.0, 10.0, 900.0), Expected(None, None, None)
    table = plan_table(tmp_path, [planned("train_cam", None), planned("make_cam", known), planned("make_lpcam", unknown)])
    rows = [re.split(r"  +", line.strip()) for line in table.splitlines()]
    assert rows[2:4] == [["make_cam", "run", "8 images", "60 s", "10.0 MB", "900 MB"], ["make_lpcam", "run", "8 images", "?", "?", "?"]]
    expected = r"  expected: 60 s for the steps that were timed before, 10.0 MB on disk \(.* free\), 900 MB of memory at the peak"
    assert re.fullmatch(f"{expected}, disk and memory of 1 step unknown", table.splitlines()[-1])
    two = plan_table(tmp_path, [planned(name, unknown) for name in ("make_cam", "make_lpcam")])
    assert two.splitlines()[-1] == "  expected: disk and memory of 2 steps unknown"
    assert "unknown" not in plan_table(tmp_path, [planned("make_cam", known)])


def test_the_memory_of_a_gpu_is_shown_and_compared_with_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (8 * 2**30, 80 * 2**30))
    small, large = Expected(None, 10.0, 900.0, 6000.0), Expected(None, 10.0, 900.0, 9000.0)
    unknown = Expected(None, None, None)
    table = plan_table(tmp_path, [planned("make_cam", small), planned("make_lpcam", unknown), planned("eval_cam", None)]).splitlines()
    rows = [re.split(r"  +", line.strip()) for line in table]
    assert rows[0][-2:] == ["GPU", "why"] and rows[1][-2:] == ["900 MB", "5.9 GB"] and rows[2][-1] == "?"
    assert "900 MB of memory at the peak, 5.9 GB of GPU memory at the peak (8.0 GB free)" in table[-1]
    table = plan_table(tmp_path, [planned("make_cam", small), planned("train_cam", large)])
    assert table.splitlines()[-1].startswith("  there may not be enough GPU memory: end other processes on the GPU, raise parts")
    assert "GPU" not in plan_table(tmp_path, [planned("make_cam", Expected(60.0, 10.0, 900.0))])


def test_a_gpu_that_cannot_be_asked_stops_no_plan(tmp_path, monkeypatch):
    def full() -> None:
        raise RuntimeError("CUDA error: out of memory")
    monkeypatch.setattr("torch.cuda.mem_get_info", full)
    table = plan_table(tmp_path, [planned("make_cam", Expected(None, 10.0, 900.0, 6000.0))])
    assert "5.9 GB of GPU memory at the peak (unknown free)" in table and "not be enough" not in table
