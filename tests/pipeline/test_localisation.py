"""eval_loc in a run: its place beside the scores of the same maps, the report, the plan, published scores."""

from pipeline.commandline import act
from pipeline.report.published import Published, against
from pipeline.runfolder.summary import score_table
from tests.conftest import works

STEPS = "steps=[train_cam,make_cam,make_lpcam,eval_cam,eval_loc,cam_to_ir_label,train_irn,make_sem_seg_labels,eval_sem_seg]"
FEW = (STEPS, "eval_loc.interval=0.25", "eval_loc.frame=[32,32]")


def test_boxes_are_scored_beside_the_masks_of_the_same_maps(smoke, outputs):
    pipeline = smoke(*FEW, "report.images=1", "report.traces=1", "report.changes=0")
    assert list(works(pipeline)) == ["eval_loc"]
    summary = pipeline.run()
    scores, path = summary["scores"], outputs / "smoke/report/report.html"
    assert list(scores)[:6] == ["make_cam", "make_cam/boxes", "make_lpcam_fg_only", "make_lpcam_fg_only/boxes", "make_lpcam", "make_lpcam/boxes"]
    boxes = scores["make_cam/boxes"]
    assert boxes["title"] == "CAM" and boxes["step"] == "eval_loc" and boxes["truth"] == "boxes of masks"
    assert boxes["threshold_source"] == "best box accuracy on 8 val images" and 0 <= boxes["box_acc"] <= boxes["max_box_acc"] <= 1
    assert boxes["top1_loc"] <= boxes["top1_cls"] and boxes["top5_loc"] is not None   # of LPCAM's maps too: by make_cam's index
    assert scores["make_lpcam/boxes"]["top1_cls"] == boxes["top1_cls"]
    assert "MaxBoxAccV2" in score_table(summary) and "centre Gaussian" in score_table(summary)
    assert not works(smoke(*FEW)) and list(works(smoke(*FEW, "eval_loc.threshold=0.4"))) == ["eval_loc"]
    act(smoke(*FEW, "report.images=1", "report.traces=1", "report.changes=0", "action=report"))
    page = path.read_text()
    assert 'id="localisation"' in page and "All scores of boxes, percent (truth: boxes of masks)" in page
    assert "LPCAM-F: box found (white), true (green)" in page and page.count('<th scope="row">LPCAM-F</th>') == 1
    assert '<th scope="col" class="left">LPCAM-F</th>' in page   # of the accuracy of classes


def test_published_scores_of_boxes_are_compared_beside_those_of_masks():
    scores = {"make_cam": {"title": "CAM", "miou": 0.5, "images": 24}, "make_cam/boxes": {"title": "CAM", "max_box_acc": 0.7, "images": 9}}
    published = Published("a paper", 9, 1.0, {"make_cam": {"max_box_acc": 71.1}})
    found = against(published, scores)
    assert [(row["of"], row["score"], row["difference"]) for row in found["rows"]] == [("make_cam/boxes", "max_box_acc", -1.1)]
    assert found["not_comparable"] == {} and found["first_outside"] == "make_cam"
    published = Published("a paper", 9, 1.0, {"make_cam": {"max_box_acc": 71.1}}, titles={"make_cam": "CAM without ReLU"})
    assert against(published, scores)["not_comparable"] == {"the published score of CAM without ReLU is not of CAM": ["CAM"]}
    scores["make_cam/boxes"]["title"] = "CAM without ReLU"
    assert len(against(published, scores)["rows"]) == 1
