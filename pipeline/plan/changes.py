"""The changes from the last run of a folder to the current one."""

from typing import Any

from pipeline.report.kinds import main_heading, main_name, measured


def changes(before: dict[str, Any] | None, after: dict[str, Any]) -> list[str]:
    """Lines with the steps and scores that changed; empty for the first run of a folder.

    `before` and `after` are summaries (`pipeline.runfolder.summary.build_summary`).
    """
    try:
        old_steps, old = before["steps"], measured(before)
    except (KeyError, TypeError, AttributeError):   # no earlier summary, or one of an older version
        return []
    again = [name for name, step in after["steps"].items() if name in old_steps
             and step["fingerprint"] != old_steps[name].get("fingerprint")]
    new = [name for name in after["steps"] if name not in old_steps]
    parts = [f"{what}: {', '.join(names)}" for what, names in (("changed", again), ("new", new)) if names]
    lines = [f"  {score['title']}: {moved}" for kind, score in measured(after).items()
             if kind in old and (moved := _moved(old[kind], score))]
    if not parts and not lines:
        return ["against the last run of this folder: nothing changed"]
    heading = "; ".join([*(parts or ["the same steps"]), *([] if lines else ["the same scores"])])
    return [f"against the last run of this folder: {heading}", *lines]


def _moved(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The changes of the main measure and the threshold of a score; empty if there are none."""
    parts, main = [], main_name(new)
    before, after = old.get(main), new[main]
    if before != after and None not in (before, after):
        parts.append(f"{main_heading(new)} {100 * before:.1f} -> {100 * after:.1f} ({100 * (after - before):+.1f})")
    before, after = old.get("threshold"), new.get("threshold")
    if before != after and None not in (before, after):
        parts.append(f"threshold {before:.2f} -> {after:.2f}")
    return ", ".join(parts)
