"""The tables of the papers: what the files hold, what the page of the documents says, where a measured score stands."""

import re

import pytest
import yaml

from pipeline.config import compose, typed
from pipeline.order import titles
from pipeline.report.published import Published, against, without_comparison
from pipeline.report.tables import COMMAND, CONF, load_papers, markdown, measured_cells
from pipeline.runfolder.summary import score_table
from tests.conftest import ROOT
from wsss.errors import ConfigError

LPCAM = next(paper for paper in load_papers() if "LPCAM" in paper.paper)
EXPERIMENTS = ("irn_voc12", "lpcam_voc12", "irn_coco14", "lpcam_coco14", "irn_voc12_deeplab", "lpcam_voc12_deeplab", "lpcam_voc12_upernet",
               "lpcam_coco14_deeplab", "lpcam_coco14_upernet", "layercam_irn_voc12_deeplab", "recam_voc12_deeplab",
               "recam_coco14_deeplab", *(f"{method}_{lpcam}{data}{network}" for method in ("amn", "edam") for lpcam in ("", "lpcam_")
                                         for data in ("voc12", "coco14") for network in ("", "_deeplab", "_upernet")
                                         if (method, data, network) != ("edam", "coco14", "")))


def numbered(number: int):
    return next(table for table in LPCAM.tables if table.number == number)


def measured(**miou: float):
    return {kind: {"miou": value, "fp": 0.3, "fn": 0.2, "precision": 0.6, "recall": 0.7, "images": 1464, "title": titles()[kind]}
            for kind, value in miou.items()}


def test_the_page_says_what_the_files_say():
    assert (ROOT / "docs/published.md").read_text() == markdown(load_papers()), f"make the page anew: {COMMAND}"


def test_the_tables_of_lpcam_are_all_there():
    assert [(table.number, len(table.rows), len(table.columns)) for table in LPCAM.tables] == [(1, 3, 5), (2, 6, 4), (3, 8, 6), (4, 24, 3)]
    rows = {row.name: row for row in numbered(4).rows}
    assert rows["EDAM+LPCAM"].values == [71.8, 72.1, 42.1] and rows["LayerCAM"].values[2] is None
    assert numbered(4).note(rows["EDAM"]) == "with saliency maps; VOC: DeepLabV2 on ResNet-101, pretrained on COCO"


def test_every_table_beside_another_says_the_same():
    third = {(row.group, row.name): row.values for row in numbered(3).rows}
    fourth = {row.name: row.values for row in numbered(4).rows}
    for method in ("IRN", "AMN", "EDAM", "MCTformer"):
        for name, kind in ((method, "CAM"), (f"{method}+LPCAM", "LPCAM")):
            pairs = zip(third[method, kind][:2] + third[method, kind][4:5], fourth[name])
            differing = [pair for pair in pairs if None not in pair and pair[0] != pair[1]]
            assert differing == ([(70.6, 71.8)] if name == "EDAM" else []), name   # printed so, and noted


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_experiments_compare_with_the_cells_they_reproduce(experiment):
    published = typed(compose([f"experiment={experiment}", "data.root=x"])).published
    everything = {of: dict.fromkeys(("miou", "fp", "fn", "precision", "recall"), 0.5) for of in titles()}
    found = {}
    for table in LPCAM.tables:
        for i, j in measured_cells(table, experiment, everything):
            row, column = table.rows[i], table.columns[j]
            found.setdefault(row.kind(column), {})[column.score] = row.values[j]
    assert found == published.scores


def test_a_measured_score_stands_in_the_row_that_the_run_reproduces():
    scores = measured(make_cam=0.481, make_lpcam_fg_only=0.5, make_lpcam=0.552, make_sem_seg_labels=0.7)
    assert measured_cells(numbered(1), "irn_voc12", scores) == pytest.approx({(0, 0): 30, (0, 1): 20, (0, 2): 48.1, (0, 3): 60, (0, 4): 70})
    assert measured_cells(numbered(2), "irn_voc12", scores) == pytest.approx({(0, 0): 48.1, (0, 2): 70})
    assert measured_cells(numbered(2), "lpcam_voc12", scores) == pytest.approx({(0, 0): 48.1, (0, 1): 55.2, (0, 3): 70})
    assert measured_cells(numbered(2), "smoke", scores) == {}
    assert measured_cells(numbered(4), "lpcam_voc12", scores) == {}
    assert measured_cells(numbered(2), "lpcam_voc12", {"make_cam": {"miou": None, "images": 1464}}) == {}


def test_a_network_is_compared_on_its_own_list_and_only_if_it_started_as_the_published_one():
    published = typed(compose(["experiment=lpcam_voc12_deeplab", "data.root=x"])).published
    scores = measured(make_sem_seg_labels=0.7, infer_seg_before_crf=0.66, infer_seg=0.68)
    assert against(published, scores)["not_comparable"] == {"published scores are of 1,449 images, here 1,464 were scored": ["segmentations"]}
    scores["infer_seg"]["images"] = 1449
    assert [(row["of"], row["difference"]) for row in against(published, scores)["rows"]] == [("make_sem_seg_labels", -1.2), ("infer_seg", -0.6)]
    scores["infer_seg"]["title"] = "segmentations, from COCO"
    text = "\n".join(without_comparison(against(published, scores)))
    assert text == "segmentations, from COCO: the published score of segmentations is not of segmentations, from COCO: no comparison"


def test_a_published_score_has_the_heading_of_the_step_that_measured_it():
    """Two steps may measure something of one name with different headings."""
    published = Published("paper", 1464, 1.0, {kind: {"miou": 50.0} for kind in ("make_cam", "make_sem_seg_labels")})
    scores = measured(make_cam=0.5, make_sem_seg_labels=0.5)
    for kind, heading in (("make_cam", "mIoU"), ("make_sem_seg_labels", "mean IoU")):
        scores[kind] |= {"title": titles()[kind], "measures": {"miou": heading}, "columns": {}}
    text = score_table({"scores": scores, "unscored": {}, "published": against(published, scores)})
    assert re.search(r"\nCAM +mIoU +50.0", text) and re.search(r"\npseudo masks +mean IoU +50.0", text)


@pytest.mark.parametrize(("change", "message"), [
    ({"values": [1.0]}, r"tables\[number=1\].CAM.values=\[1.0\] is not possible: expected 5 values, one per column"),
    ({"values": [1, 2, 3, 4, 500]}, "percent, from 0 to 100, or null"), ({"marks": ["star"]}, "keys of the table's marks"),
    ({"kinds": {"cams": "make_cam"}}, "CAM.kinds={'cams': 'make_cam'} is not possible: expected keys and values of make_cam"),
    ({"of": "cams"}, "one of make_cam, make_cam_backprop, .*, make_cam_xgradcam, make_lpcam_fg_only, make_lpcam, imported, make_amn, make_amn_lpcam_fg_only, make_amn_lpcam, make_sem_seg_labels, infer_seg_before_crf, infer_seg, infer_seg_gt_before_crf, infer_seg_gt, make_ins_seg_labels"), ({"experiment": "x"}, "does not hold the tables of a paper .*experiment"),
    ({"values": ["high"] * 5}, "does not hold the tables of a paper .*high")])
def test_what_is_no_table_is_refused(tmp_path, change, message):
    content = yaml.safe_load((CONF / "published_lpcam.yaml").read_text())
    content["tables"][0]["rows"][0] |= change
    (tmp_path / "published_other.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        load_papers(tmp_path)


def test_published_stays_a_key_and_is_no_group_of_options():
    assert typed(compose(["experiment=irn_voc12", "data.root=x", "published=null"])).published is None
