"""The campaign: trials of what may go wrong, drawn at random, for as long as one likes.

    python -m tests.campaign [ROW ...] [--minutes 30] [--folder outputs/campaign] [--table] [--seed 0]

Each module of this package has `ROWS`. Trial number n of a row is drawn from (seed, row, n), and its count is written at once to
`campaign.json` in the folder: a later call goes on where the last one was stopped, also by a kill. The row with the smallest share
of its wanted trials is next. A failed trial keeps its folder, and its number repeats it: `--only ROW:NUMBER`. The table, in
Markdown, is printed at the end, or with --table alone. `tests/test_campaign.py` runs the first trials of each row.
"""
