"""The short form of the campaign: the first trials of each of its rows."""

import re
from unittest.mock import patch

import pytest

from tests.campaign.__main__ import attempt, rows
from tests.campaign.fuzz import limits, tried
from tests.campaign.parsers import PARSERS
from tests.campaign.row import Unavailable
from tests.test_house import ROOT, SOURCES
from wsss.errors import DataError


@pytest.mark.parametrize("row", [row for row in rows() if row.short], ids=lambda row: row.name)
def test_the_first_trials(row, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "campaign"
    for number in range(row.short):
        try:
            attempt(row, number, folder)
        except Unavailable as reason:
            pytest.skip(str(reason))


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
