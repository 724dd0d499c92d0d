"""The short form of the campaign: the first trials of each of its rows. And how the campaign counts."""

import json
import os

import pytest

from tests.campaign import __main__ as campaign
from tests.campaign.row import Row, Unavailable


@pytest.mark.parametrize("row", campaign.rows(), ids=lambda row: row.name)
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
