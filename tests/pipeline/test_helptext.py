"""`--help`: what stands in it is read from the list of steps and from `conf/`."""

import shutil

from pipeline.config import compose
from pipeline.helptext import CONF, help_text
from pipeline.order import BY_NAME


def test_help_has_the_steps_and_flags_of_the_list_and_of_the_experiments(tmp_path, monkeypatch):
    text = " ".join(help_text().split())
    default = compose([]).steps
    assert f" Steps: {', '.join(default)} Flags: " in text
    assert f"leaves one out ({' '.join(BY_NAME[name].flag for name in default)});" in text
    assert "Further steps, in experiment=irn_instances: make_ins_seg_labels, eval_ins_seg (make_ins_seg_pass eval_ins_seg_pass) " in text

    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr("pipeline.helptext.CONF", tmp_path / "conf")
    (tmp_path / "conf/experiment/irn_instances.yaml").write_text("steps: [")
    (tmp_path / "conf/experiment/scored.yaml").write_text("steps:\n  - make_ins_seg_labels\n  - eval_ins_seg\n")
    (tmp_path / "conf/experiment/second.yaml").write_text("steps: [eval_ins_seg]")
    text = " ".join(help_text().split())
    assert "Further steps, in experiment=scored: make_ins_seg_labels (make_ins_seg_pass) " in text
    assert "Further steps, in experiment=scored | second: eval_ins_seg (eval_ins_seg_pass) " in text
    for name in ("scored", "second"):
        (tmp_path / f"conf/experiment/{name}.yaml").write_text("")
    assert "Further steps, in no experiment, add them by steps=[...]: make_ins_seg_labels, eval_ins_seg (" in " ".join(help_text().split())
