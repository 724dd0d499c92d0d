"""The short form of the campaign: the first trials of each of its rows. And how the campaign counts."""

import json
import os
import re
from unittest.mock import patch

import pytest

from tests.campaign import __main__ as campaign
from tests.campaign.fuzz import limits, tried
from tests.campaign.parsers import PARSERS
from tests.campaign.row import Row, Unavailable
from tests.test_house import ROOT, SOURCES
from wsss.errors import DataError


@pytest.mark.parametrize("row", [row for row in campaign.rows() if row.short], ids=lambda row: row.name)
def test_the_first_trials(row, tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "campaign"   # of all processes of the session
    for number in range(row.short):
        try:
            campaign.attempt(row, number, folder, short=True)
        except Unavailable as reason:
            pytest.skip(str(reason))


def test_counts_add_up_and_a_failed_trial_is_kept(tmp_path, monkeypatch, capsys):
    asked = []

    def third_fails(trial):
        (trial.folder / "made").touch()
        asked.append(trial.draws.random())
        assert len(asked) != 3
        return {"one": 1, "two": 2}

    def cannot(trial):
        raise Unavailable("no such thing here")
    rows = [Row("fails", "fails once", third_fails, wanted=2, inputs="calls"), Row("cannot", "is not tried", cannot, wanted=9)]
    monkeypatch.setattr(campaign, "rows", lambda: rows)
    folder = ["--folder", str(tmp_path)]
    assert campaign.main(folder) == 0 and len(asked) == 2
    rows[0] = Row("fails", "fails once", third_fails, wanted=4, inputs="calls")
    assert campaign.main(folder) == 1   # goes on with the third
    assert [path.name for path in tmp_path.glob("fails-*/made")] == ["made"] and (tmp_path / "fails-2").exists()
    campaign.main([*folder, "--only", "fails:2"])
    assert len(set(asked)) == 4 and asked[4] == asked[2]
    capsys.readouterr()
    assert campaign.main([*folder, "--table"]) == 1   # as the campaign itself
    printed = capsys.readouterr().out
    assert "| `fails` | fails once | 4 | 9 calls | 2 |" in printed and "no such thing here" in printed
    assert "`fails`: one 3, two 6." in printed
    assert json.loads((tmp_path / "campaign.json").read_text())["cannot"]["trials"] == 0


def test_two_campaigns_do_not_share_a_folder(tmp_path):
    with campaign.alone(tmp_path), pytest.raises(SystemExit, match="another campaign works in"), campaign.alone(tmp_path):
        pass


READS = re.compile(r"""parse_json\(|json\.loads?\(|read_yaml\(|yaml\.|np\.load\(|read_np[yz]\(|torch\.load\(|\bload\(file|load_file\(|safe_open\(|Image\.open\(|imread\(|csv\.(?:reader|DictReader)|ElementTree\.from|read_text\(|read_bytes\(|read_lines\(|read_whole\(|open_regular\(|ZipFile\(|tarfile\.open\(|read_json\(|OmegaConf\.load|np\.frombuffer|parse_override""")
# Modules that read, but nothing that others make, or only through a parser of the list.
OTHERS = {
    "wsss.reading": "the functions of the others", "wsss.families": "our own sources", "wsss.networks.checkpoints": "through wsss.networks.weights",
    "wsss.annotations.cvat": "writes", "pipeline.helptext": "our own configuration",
    "pipeline.presets": "our own configuration", "pipeline.config": "our own configuration", "pipeline.actions": "our own sources", "pipeline.report.figures": "our own style sheet",
    "pipeline.cluster.processes": "messages of the other processes of one run", "pipeline.cluster.machine": "/proc", "steps.runtime.memory": "/proc", "steps.runtime.context": "values of this process",
    "pipeline.actions.export_voc": "copies images", "pipeline.actions.export_voc_test": "compares with what it wrote", "pipeline.actions.export": "copies images", "pipeline.actions.export_onnx": "compares with what it wrote",
    "pipeline.multirun": "words of a command line, through pipeline.words", "pipeline.report.tables": "our own tables", "wsss.data.voc_prepare": "lists, as wsss.data.voc"}


def test_no_parser_is_left_out():
    tried = {module for parser in PARSERS for module in parser.reads}
    for path in SOURCES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text()
        found = {match for match in READS.findall(text)} - {"read_json("}
        assert not found or module in tried or module in OTHERS, f"{module} reads by {', '.join(sorted(found))}: add it to tests/campaign/parsers.py"
        assert module not in OTHERS or found, f"{module} reads nothing"
    assert tried <= {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES}


def test_a_parser_that_does_harm_is_found():
    """The checks of the campaign themselves."""
    def nothing(content):
        return None

    def raising(content):
        raise KeyError("x")

    def large(content):
        return bytearray(2**31)

    def hidden(content):
        try:
            bytearray(2**31)
        except MemoryError as error:
            raise DataError("it is damaged") from error

    def slow(content):
        while True:
            pass

    with limits(), patch("tests.campaign.fuzz.SECONDS", 0.1):
        tried(nothing, b"")
        for wrong, error in ((raising, KeyError), (large, MemoryError), (hidden, AssertionError), (slow, AssertionError)):
            with pytest.raises(error):
                tried(wrong, b"")
