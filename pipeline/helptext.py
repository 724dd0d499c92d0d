"""The text of `--help`. Imports nothing slow and composes no configuration."""

from pathlib import Path

from pipeline import actions

CONF = Path(__file__).resolve().parent.parent / "conf"
TEXT = """\
Weakly supervised semantic segmentation - image-level labels in, pixel masks out.

  python run_pipeline.py                                   all eight steps on the embedded data set
  python run_pipeline.py experiment=smoke                  the same at its smallest
  python run_pipeline.py data=folder data.root=DIR name=N  your own images
  python run_pipeline.py -m KEY=A,B                        a run for each value

Steps: train_cam, make_cam, make_lpcam, eval_cam, cam_to_ir_label, train_irn, make_sem_seg_labels, eval_sem_seg
Flags: STEP_pass=true runs only the steps so marked, STEP_pass=false leaves one out
       (train_cam_pass make_cam_pass make_lpcam_pass eval_cam_pass cam_to_ir_label_pass train_irn_pass
       make_sem_seg_pass eval_sem_seg_pass); or from_step=STEP, to_step=STEP.
experiment=irn_instances has two steps more: make_ins_seg_labels, eval_ins_seg (make_ins_seg_pass eval_ins_seg_pass)

Actions, each chosen by action=NAME:
{actions}
Groups, each chosen by group=option:
{groups}
Any key can be set by key=value (make_lpcam.n_clusters=8); `--cfg job` prints all keys and values.
Shell completion of keys and groups, here in bash: eval "$(python run_pipeline.py -sc install=bash)"
"""


def help_text() -> str:
    lines = "".join(f"  {name:<16} {line}\n" for name, line in actions.help_lines().items())
    groups = "".join(f"  {group}: {', '.join(sorted(options))}\n" for group, options in sorted(_groups().items()))
    return TEXT.format(actions=lines, groups=groups).rstrip()


def _groups() -> dict[str, set[str]]:
    """The options of each group, from the files below `conf/`."""
    groups: dict[str, set[str]] = {}
    for path in CONF.glob("*/*.yaml"):
        groups.setdefault(path.parent.name, set()).add(path.stem)
    return groups
