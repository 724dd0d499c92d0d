"""The short form of the campaign: the first trials of each of its rows."""

import pytest

from tests.campaign.__main__ import attempt, rows
from tests.campaign.row import Unavailable


@pytest.mark.parametrize("row", [row for row in rows() if row.short], ids=lambda row: row.name)
def test_the_first_trials(row, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "campaign"
    for number in range(row.short):
        try:
            attempt(row, number, folder)
        except Unavailable as reason:
            pytest.skip(str(reason))
