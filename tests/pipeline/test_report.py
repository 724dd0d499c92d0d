"""The report of a run and the comparison of runs: what they say, what they leave out and why, and that they stay small."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from benchmarks.report import measure
from pipeline import Pipeline
from pipeline.commandline import act
from pipeline.config import compose, typed
from pipeline.order import made_from, titles
from pipeline.report import figures, images, kinds, page, stage_images, thumbnails
from pipeline.report.compare import config_differences
from pipeline.report.gallery import choose_shown, choose_traces
from pipeline.report.images import ImageScores, image_iou, score_images
from pipeline.report.pieces import of, pieces
from pipeline.report.prototypes import draw
from pipeline.report.published import against
from pipeline.report.scores import published_tables, score_tables
from pipeline.report.stage_images import compare_stages, sample, stage_sections
from pipeline.report.traces import TraceMaker
from pipeline.runfolder.reading import find_run
from steps.parts.pieces import Centre, Column, Curve, Line, Matrix, Sheet, Table
from steps.runtime.artifacts import Maps
from steps.runtime.datasets import open_dataset
from tests.browser import needs_browser, show
from tests.conftest import ROOT, SMOKE, copied
from wsss.data.dataset import Dataset
from wsss.data.drawing import CLASSES
from wsss.data.images import read_mask, write_mask
from wsss.errors import ArtifactError, ConfigError

SECTIONS = ("scores", "classes", "thresholds", "choose", "training", "way", "changes", "images", "prototypes", "confusion", "steps", "configuration")


class Page(HTMLParser):
    """The sections of a page, the addresses it refers to, its text, and whether every element is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.sections, self.addresses, self.words, self.open, self.tiles, self.ids = [], [], [], [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sections += [values["id"]] if tag == "section" and "id" in values else []
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[name] for name in ("src", "href", "xlink:href") if values.get(name)]
        self.tiles += [values["data-id"]] if values.get("class") == "tile" else []
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def read(path: Path) -> Page:
    found = Page(path.read_text())
    assert found.open == [], "elements that are not closed"
    return found


@pytest.fixture(scope="session")
def report(smoke_outputs, made_once) -> Path:
    """The report of the finished run, which is never changed."""
    outputs = made_once("report", lambda outputs: Pipeline.compose(*SMOKE, f"outputs={copied(smoke_outputs, outputs)}").report())
    return outputs / "smoke/report/report.html"


def test_a_report_shows_everything_and_needs_nothing_beside_it(report, smoke_outputs):
    found, summary = read(report), json.loads((smoke_outputs / "smoke/summary.json").read_text())
    assert tuple(found.sections) == SECTIONS and "Not in this report" not in found.text
    assert report.stat().st_size < 2e6
    for address in found.addresses:
        assert address.startswith(("#", "data:")), address
    assert list(summary["scores"]) == ["make_cam", "make_lpcam_fg_only", "make_lpcam", "make_sem_seg_labels"]
    for score in summary["scores"].values():
        assert f"{100 * score['miou']:.1f}" in found.text
    assert "best mIoU on the masks of 8 val images" in found.text
    assert len(found.tiles) == len(set(found.tiles)) == 24
    for name in ("make_lpcam:", "n_clusters: 4", "torch ", "hydra-core", list(CLASSES)[-1], "random walk", "edge map"):
        assert name in found.text
    assert len(found.ids) == len(set(found.ids)), "two elements have one id"
    assert not re.search("#0101[0-9a-f]{2}", report.read_text()), "a figure with a colour that is not of the page"
    assert len(list((report.parent).iterdir())) == 2
    stages = summary["stages"]
    assert stages["headline"].startswith("LPCAM ") and stages["headline"] in found.text and "Effect of each stage" in found.text
    for remark in stages["remarks"]:
        assert remark["text"] in found.text
        assert all(each["setting"] in found.text for each in remark["suggestions"])


def test_the_command_line_starts_without_what_only_reports_need():
    code = "import sys, pipeline.commandline; assert not {'matplotlib', 'pipeline.report.page'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_run_ends_with_its_report_and_leaves_one_that_is_up_to_date(smoke, outputs, capsys):
    assert act(smoke("report.write=true")) == 0
    path = outputs / "smoke/report/report.html"
    out = capsys.readouterr().out
    assert f"Report: {path}" in out and "\nstages, in points of mIoU: LPCAM " in out
    before = path.stat().st_mtime_ns
    smoke("report.write=true").run()
    assert path.stat().st_mtime_ns == before
    smoke("report.write=true", "make_sem_seg_labels.bg_threshold=0.5").run()
    assert path.stat().st_mtime_ns > before


def test_no_report_makes_a_run_fail(smoke, monkeypatch, capsys):
    def fail(*args, **options):
        raise RuntimeError("no ink")
    monkeypatch.setattr(page, "write_report", fail)
    pipeline = smoke("report.write=true")
    assert pipeline.run() == pipeline.results() and pipeline.report_path is None
    assert "the report could not be written (RuntimeError: no ink); the results are complete" in capsys.readouterr().err


def test_a_report_is_made_with_the_configuration_of_the_run(smoke, outputs, capsys):
    config = outputs / "smoke/config.yaml"
    config.write_text(config.read_text().replace("report:", "unheard_of:").replace("  traces: 6\n", ""))
    assert act(smoke("action=report")) == 1
    assert "does not hold the configuration of a run" in capsys.readouterr().err
    config.write_text(re.sub(r"unheard_of:\n(  .*\n)*", "", config.read_text()))   # of a version without reports
    assert act(Pipeline.compose("name=smoke", f"outputs={outputs}", "action=report", "device=cpu", "report.traces=1")) == 0
    found = read(outputs / "smoke/report/report.html")
    assert "Not in this report" not in found.text and found.text.count("mIoU") > 3


@pytest.mark.parametrize(("removed", "lacking"), [
    (["eval_sem_seg"], {"confusion"}), (["eval_cam"], {"thresholds"}), (["train_cam", "train_irn"], {"training"}),
    (["make_lpcam"], {"prototypes"}), (["eval_cam", "eval_sem_seg"], {"classes", "confusion"}),
    (["make_sem_seg_labels", "eval_sem_seg", "train_irn", "cam_to_ir_label"], {"confusion"})])
def test_a_report_says_what_is_missing(smoke, outputs, removed, lacking):
    for step in removed:
        shutil.rmtree(outputs / "smoke" / step)
    found = read(smoke().report())
    assert set(SECTIONS) - set(found.sections) <= lacking | {"thresholds", "changes"} and {"steps", "images", "way"} <= set(found.sections)
    assert not lacking & set(found.sections) or lacking == {"thresholds"}
    for step in removed:
        assert f"{step}: missing" in found.text


def test_a_report_without_masks_shows_the_pictures(smoke, outputs):
    pipeline = smoke()
    pipeline.dataset = replace(open_dataset(pipeline.config.data), mask_files={})
    found = read(page.write_report(pipeline._as_recorded(pipeline._summary())))
    assert "the data set has no masks to score against" in found.text and "some of every class, without scores" in found.text
    assert found.tiles and {"way", "images", "steps"} <= set(found.sections) and "classes" not in found.sections


def test_a_report_of_the_baseline_has_what_its_steps_make(smoke, outputs):
    pipeline = smoke("experiment=irn", "precision=float32", "name=irn", "data.n_train=24", "data.n_val=8", "data.image_size=96", "reuse_from=[smoke]",
                     "steps=[train_cam,make_cam,eval_cam]", "train_cam.epochs=20", "train_cam.batch_size=8")
    pipeline.run()
    found = read(pipeline.report())
    assert "seed maps CAM" in found.text and "LPCAM" not in found.text.partition("Configuration As")[0]
    assert "prototypes" not in found.sections and {"scores", "thresholds", "way"} <= set(found.sections)


def test_what_is_damaged_or_gone_is_named_and_the_rest_is_shown(smoke, outputs):
    run = smoke().recorded(outputs / "smoke")
    (outputs / "smoke/make_lpcam/prototypes.npz").write_bytes(b"")
    path = next((outputs / "smoke/make_lpcam").glob("train_*.npy"))
    path.write_bytes(path.read_bytes()[:-20])
    found = read(smoke().report())
    assert {"scores", "way", "images"} <= set(found.sections) and "make_lpcam: partial" in found.text
    found = read(page.write_report(replace(run, dataset=replace(run.dataset, root=Path("gone")))))
    assert re.search(r"cannot read (the (mask|image) )?gone/", found.text) and re.search(r"and \d+ more", found.text)
    assert {"scores", "classes", "thresholds", "confusion"} <= set(found.sections) and not found.tiles


def test_the_tables_of_a_paper_stand_in_the_report_of_its_experiments(smoke, outputs):
    run = smoke().recorded(outputs / "smoke")
    assert published_tables(run) == []
    run.config.published = typed(compose(["experiment=irn_voc12", "data.root=x"])).published
    run.config.experiment_name = "irn_voc12"
    assert [table["measured"] for table in published_tables(run)] == [0] * 4   # 24 images are no 1,464
    run.config.published.images = 24
    tables, miou = published_tables(run), 100 * run.summary["scores"]["make_cam"]["miou"]
    assert [table["measured"] for table in tables] == [5, 2, 0, 0]
    assert tables[1]["rows"][0]["cells"][0] == {"value": "48.8", "here": f"here {miou:.1f} ({round(miou - 48.8, 2):+.1f})"}
    run.summary["published"] = against(run.config.published, run.summary["scores"])
    found = read(page.write_report(run))
    assert "published" in found.sections and "Table 4. mIoU of DeepLabV2 beside other methods not measured by this run" in found.text
    assert f"published 48.8 ({miou - 48.8:+.1f}, outside)" in found.text and "the first step outside is make_cam" in found.text
    assert f"Published: {run.config.published.source}" in found.text
    assert f"here {miou:.1f}" in found.text and "Precision and recall: the paper does not say how they are averaged" in found.text


def test_images_are_compared_from_stage_to_stage(smoke, outputs):
    run = smoke("report.changes=2").recorded(outputs / "smoke")
    found, scores = compare_stages(run), run.summary["scores"]
    assert list(found.changes) == [("make_cam", "make_lpcam"), ("make_lpcam", "make_sem_seg_labels")] and found.compared == found.scored == 24
    kept = score_images(run)
    of_masks = dict(zip(kept.ids, kept.miou))
    for first, second in zip(*(sorted(changes, key=lambda change: change.image_id) for changes in found.changes.values())):
        image_id = first.image_id
        truth, maps = run.dataset.mask(image_id), Maps(outputs / "smoke/make_lpcam")
        soft = maps.at(image_id, "full").numpy()
        values = np.array([0, *(index + 1 for index in maps.classes(image_id))])
        mask = values[np.where(soft.max(0, initial=0) > np.float32(scores["make_lpcam"]["threshold"]), soft.argmax(0) + 1, 0)]
        iou = image_iou(mask.astype(np.uint8), truth)
        assert first.after == second.before == pytest.approx(np.mean(list(iou.values())))
        assert second.after == pytest.approx(of_masks[image_id], abs=1e-6)
        assert {label: after for label, (_, after) in first.labels.items() if after} == pytest.approx({k: v for k, v in iou.items() if v})
    missing: list[str] = []
    for section, changes in zip(stage_sections(run, found, missing), found.changes.values()):
        points = [change.points for change in changes]
        assert points == sorted(points, reverse=True) and section["images"] == 24
        assert [tile["id"] for tile in section["ends"]["gained most"]] == [c.image_id for c in changes[:2] if c.points > 0.5]
        assert [tile["id"] for tile in section["ends"]["lost most"]] == [c.image_id for c in changes[:-3:-1] if c.points < -0.5]
        for tile in [*section["ends"]["gained most"], *section["ends"]["lost most"]]:
            assert list(tile["pictures"])[:3] == ["image", "ground truth", section["before"]]
    assert section["after"] == "pseudo masks (walk)" and not missing


def test_the_images_compared_are_a_bounded_sample(smoke, outputs, monkeypatch):
    ids = [f"{i:05d}" for i in range(10_000)]
    chosen = sample(ids)
    assert len(chosen) == 400 and chosen == sorted(chosen) == sample(reversed(ids)) and set(sample(ids, 50)) < set(chosen)
    assert set(sample(ids[:5000])) >= set(chosen) & set(ids[:5000])
    monkeypatch.setattr(stage_images, "sample", lambda ids: sample(ids, 5))
    found = read(smoke("report.changes=1").report())
    assert "Of the 24 scored images, 5 were compared, chosen by a hash of the id" in found.text


def test_a_map_that_cannot_be_read_is_left_out_of_the_comparison(smoke, outputs):
    run = smoke().recorded(outputs / "smoke")
    path = next((outputs / "smoke/make_cam").glob("train_*.npy"))
    path.write_bytes(path.read_bytes()[:-20])
    found, missing = compare_stages(run), []
    stage_sections(run, found, missing)
    assert list(found.failed) == [path.stem] and "1 images could not be compared from stage to stage" in missing[0]
    assert all(len(changes) == 23 for changes in found.changes.values())


def test_the_iou_of_an_image_by_hand():
    truth = np.array([[0, 0, 1, 1], [255, 2, 2, 2]], np.uint8)
    prediction = np.array([[0, 1, 1, 0], [3, 2, 2, 255]], np.uint8)
    found = image_iou(prediction, truth)
    assert found == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1.0})
    assert image_iou(prediction, truth, "background") == pytest.approx({0: 1 / 4, 1: 1 / 3, 2: 2 / 3})
    assert image_iou(truth, np.full_like(truth, 255)) == {}
    kinds = thumbnails.error_map(prediction, truth)
    assert kinds.tolist() == [[thumbnails.BACKGROUND, thumbnails.TOO_MUCH, thumbnails.CORRECT, thumbnails.MISSED],
                              [thumbnails.NOT_SCORED, thumbnails.CORRECT, thumbnails.CORRECT, thumbnails.MISSED]]


def test_the_scores_of_the_images_are_those_of_the_run_and_are_kept(smoke, outputs, monkeypatch):
    pipeline = smoke(f"data.root={outputs / '.data'}")   # of the copy: a mask is changed
    run = pipeline.recorded(pipeline.folder.path)
    scores, summary = score_images(run), pipeline.results()["scores"]["make_sem_seg_labels"]
    assert len(scores.ids) == summary["images"] == 24 and not scores.failed
    for image_id, miou in zip(scores.ids, scores.miou):
        truth, mask = run.dataset.mask(image_id), read_mask(outputs / f"smoke/make_sem_seg_labels/{image_id}.png")
        labels = [value for value in np.union1d(mask, truth) if value != 255]
        iou = [((mask == v) & (truth == v)).sum() / (((mask == v) | (truth == v)) & (truth != 255)).sum() for v in labels]
        assert miou == pytest.approx(np.mean(iou), abs=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "mask", None)   # nothing is read again
        again = score_images(pipeline.recorded(pipeline.folder.path))
    assert again.ids == scores.ids and again.miou.tolist() == scores.miou.tolist()
    assert [set(iou) for iou in again.iou] == [set(iou) for iou in scores.iou]
    path = next(run.dataset.mask_path(image_id) for image_id in scores.ids)
    write_mask(path, np.zeros_like(read_mask(path)))
    changed = score_images(pipeline.recorded(pipeline.folder.path))
    assert changed.miou.tolist() != scores.miou.tolist()


def many(run, n: int):
    """The run with `n` images, each with a class and a score."""
    ids = tuple(f"{i:05d}" for i in range(n))
    labels = {image_id: (i % 80,) for i, image_id in enumerate(ids)}
    dataset = Dataset(name="many", root=Path("nowhere"), classes=tuple(f"c{i}" for i in range(80)), labels=labels,
                      lists={"train": ids, "val": (), "all": ids}, image_files=dict(zip(ids, ids)))
    scores = ImageScores(ids, np.linspace(0, 1, n, dtype=np.float32), tuple({0: 0.5, i % 80 + 1: i / n} for i in range(n)),
                         np.ones(n, np.float32))
    return type(run)(run.config, run.composed, dataset, run.folder, run.runtime, run.plan, run.summary), scores


def test_the_images_shown_are_a_bounded_sample_of_all_kinds(smoke, outputs):
    pipeline = smoke()
    run, scores = many(pipeline.recorded(pipeline.folder.path), 10_000)
    shown = choose_shown(run, scores, scores.ids)
    tagged = {tag: [image_id for image_id, tags in shown.items() if tag in tags] for tag in ("best", "worst", "random", "class")}
    assert {tag: len(ids) for tag, ids in tagged.items()} == {"best": 24, "worst": 24, "random": 24, "class": 480}
    assert set(tagged["best"]) == set(scores.ids[-24:]) and set(tagged["worst"]) == set(scores.ids[:24])
    assert {run.dataset.labels[image_id] for image_id in tagged["class"]} == {(i,) for i in range(80)}
    assert shown == choose_shown(run, scores, scores.ids)
    traces = choose_traces(run, scores, scores.ids)
    ious = [scores.miou[scores.ids.index(image_id)] for image_id in traces]
    assert len(traces) == 6 and ious == sorted(ious, reverse=True) and len({run.dataset.labels[image_id] for image_id in traces}) == 6
    assert len(choose_shown(run, ImageScores(), scores.ids[:30])) == 30


def test_images_of_which_little_was_scored_are_not_among_the_best(smoke, outputs):
    pipeline = smoke()
    run, scores = many(pipeline.recorded(pipeline.folder.path), 1000)
    scored = np.where(np.arange(1000) >= 900, images.LITTLE - 0.01, images.LITTLE).astype(np.float32)   # the hundred best ones
    scores = replace(scores, scored=scored)
    shown = choose_shown(run, scores, scores.ids)
    assert {image_id for image_id, tags in shown.items() if "best" in tags} == set(scores.ids[876:900])
    assert set(choose_traces(run, scores, scores.ids)) < set(scores.ids[:900])
    nothing = replace(scores, scored=np.zeros(1000, np.float32))
    assert not any("best" in tags for tags in choose_shown(run, nothing, scores.ids).values())


def test_a_picture_says_how_much_of_it_was_scored(smoke, outputs):
    pipeline = smoke(f"data.root={outputs / '.data'}")   # of the copy: masks are changed
    run = pipeline.recorded(pipeline.folder.path)
    best = score_images(run).best_first()[:2]
    for image_id, left in zip(best, (0.25, 0.75)):
        truth = read_mask(run.dataset.mask_path(image_id))
        truth[round(left * len(truth)):] = 255
        write_mask(run.dataset.mask_path(image_id), truth)
    run = pipeline.recorded(pipeline.folder.path)
    scores = score_images(run)
    places = scores.place()
    assert [float(scores.scored[places[image_id]]) for image_id in best] == pytest.approx([0.25, 0.75], abs=0.01)
    assert score_images(run).scored.tolist() == scores.scored.tolist(), "kept"
    assert best[0] not in scores.best_first() and len(scores.best_first()) == len(scores.ids) - 1
    html = page.write_report(run).read_text()
    tile = re.search(rf'<figure class="tile" data-id="{best[0]}".*?</figure>', html, re.S)[0]
    assert re.search(r"2[456] % scored", tile) and " data-little " in tile and "best" not in re.search('data-tags="(.*?)"', tile)[1]
    other = re.search(rf'<figure class="tile" data-id="{best[1]}".*?</figure>', html, re.S)[0]
    assert re.search(r"7[456] % scored", other) and " data-little " not in other
    assert html.count("100 % scored") > 20


def test_a_strip_reads_what_save_soft_kept_and_computes_it_otherwise(smoke, outputs):
    run = smoke().recorded(outputs / "smoke")
    computed = TraceMaker(run, pieces(run, []))
    image_id = computed.available[0]
    edge, walked = (computed.columns[title].read(image_id) for title in ("edge map", "random walk"))
    assert edge.dtype == walked.dtype == np.float32
    folder = outputs / "smoke/make_sem_seg_labels"
    for kind, array in (("walk", walked), ("edge", edge)):
        (folder / kind).mkdir()
        np.save(folder / kind / f"{image_id}.npy", (array / 2).astype(np.float16))
    kept = TraceMaker(run, pieces(run, []))
    assert np.allclose(2 * kept.columns["random walk"].read(image_id), walked, atol=2e-3)
    assert np.allclose(2 * kept.columns["edge map"].read(image_id), edge, atol=2e-3)
    trace = computed(image_id)
    assert trace.columns == ["image", "CAM", "LPCAM-F", "LPCAM", "confident label", "edge map", "random walk", "pseudo mask",
                             "ground truth", "errors"]


def test_a_strip_has_the_columns_of_the_steps_and_leaves_out_what_cannot_be_read(smoke, outputs):
    def fail(image_id):
        raise ArtifactError("torn")
    run = smoke().recorded(outputs / "smoke")
    ids = ["train_0000", "train_0001"]
    own = Column("inverted", "map", ids, lambda image_id: np.ones((2, 3), np.float32) if image_id == ids[0] else None)
    maker = TraceMaker(run, [*pieces(run, []), ("invert", own), ("invert", replace(own, read=fail)), ("x", Column("y", "map", (), fail))])
    assert maker.available == ids
    trace = maker(ids[0])
    assert trace.columns[-3:] == ["inverted", "ground truth", "errors"] and trace.missing == {"inverted, invert": "torn"}
    assert "inverted" not in maker(ids[1]).columns


def test_a_walk_that_the_step_does_not_use_is_not_computed(smoke, outputs):
    smoke("refiner=crf").run()
    run = smoke().recorded(outputs / "smoke")
    trace = (maker := TraceMaker(run, pieces(run, [])))(maker.available[0])
    assert "random walk" not in trace.columns and "pseudo mask" in trace.columns


def test_a_run_that_ends_with_irn_shows_the_walk(smoke, outputs):
    shutil.rmtree(outputs / "smoke/make_sem_seg_labels")
    run = smoke().recorded(outputs / "smoke")
    trace = (maker := TraceMaker(run, pieces(run, [])))("train_0000")
    assert {"edge map", "random walk"} < set(trace.columns) and "pseudo mask" not in trace.columns
    assert maker.available == list(run.dataset.lists["train"])


def test_what_a_step_shows_before_an_error_is_shown(smoke, outputs, monkeypatch):
    def shown(context):
        yield Table("first", ("a", "b"), [("1", "two")])
        raise ArtifactError("torn")
    monkeypatch.setattr("steps.eval_sem_seg.shown", shown)
    run, missing = smoke().recorded(outputs / "smoke"), []
    assert of(pieces(run, missing), Table)[-1].title == "first" and missing == ["torn"]
    found = read(page.write_report(run))
    assert "first a b 1 two" in found.text and "torn" in found.text and "confusion" not in found.sections
    shutil.rmtree(outputs / "smoke/eval_sem_seg")
    assert pieces(smoke().recorded(outputs / "smoke"), missing := []) and missing == []   # it is listed as a missing step


def test_what_two_steps_show_with_one_title_has_their_names(smoke, outputs, monkeypatch):
    """Beside the pieces of the run, those that a second row of their modules would show."""
    sheet = Sheet(1, {"foreground": [Centre(0.9, True, [("train_0000", (1, 2))])]})
    matrix, table = Matrix("Confusion matrix", np.eye(9, dtype=int), "mask"), Table("Tried", ("a",), [("1",)], "thresholds")

    def shown(context):
        return [matrix, table, Curve("curve", "x", "y", [Line([0, 1], [0, 1], context.name)]), sheet]
    for step in ("make_lpcam", "eval_sem_seg"):
        monkeypatch.setattr(f"steps.{step}.shown", shown)
    run = smoke().recorded(outputs / "smoke")
    found = pieces(run, [])
    assert [each.title for each in of(found, Matrix)] == ["Confusion matrix (make_lpcam)", "Confusion matrix (eval_sem_seg)"]
    assert [each.title for each in of(found, Table) if "Tried" in each.title] == ["Tried (make_lpcam)", "Tried (eval_sem_seg)"]
    assert [each.title for each in of(found, Curve)].count("curve") == 2   # to be drawn as one
    assert [(sheet.group, sheet.index) for sheet in draw(run.dataset, found)] == [("LPCAM", 1), ("eval_sem_seg", 1)]
    text = page.write_report(run).read_text().partition('id="prototypes"')[2]
    assert text.count("<h3>LPCAM</h3>") == text.count("<h3>eval_sem_seg</h3>") == 1
    monkeypatch.setattr("steps.eval_sem_seg.shown", lambda context: ())
    found = pieces(run, [])
    assert {"Confusion matrix", "Tried"} < {each.title for each in (*of(found, Matrix), *of(found, Table))}
    assert [sheet.group for sheet in draw(run.dataset, found)] == [""]


def test_figures_of_one_title_are_one_and_each_kind_has_its_colour_and_mark(smoke, outputs):
    run = smoke().recorded(outputs / "smoke")
    curves = figures.merged(of(pieces(run, []), Curve))
    assert [curve.title for curve in curves] == [
        "train_cam: loss", "train_cam: mean average precision on val", "On the scored images", "On the val images, which chose",
        "train_irn: losses"]
    *of_maps, of_masks = curves[3].lines
    fixed = list(titles(further=False))
    assert [line.kind for line in of_maps] == fixed[:3] and of_masks.kind == "make_sem_seg_labels"
    thresholds = {kind: score["threshold"] for kind, score in run.summary["scores"].items()}
    assert {line.kind: line.marks for line in curves[3].lines} == {kind: [(value, True)] for kind, value in thresholds.items()}
    oracles = {kind: score["oracle"]["threshold"] for kind, score in run.summary["scores"].items() if score.get("oracle")}
    assert {line.kind: line.marks for line in curves[2].lines} == {
        kind: [(oracles[kind], False), (thresholds[kind], True)] for kind in fixed[:3]}
    assert list(kinds.tones(fixed).values()) == ["k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8", "k1", "k2", "k3", "k4", "k5"]   # of other experiments
    styles = (Path(page.__file__).parent / "templates/page.css").read_text()
    assert all(f".k{n} {{ --tone: var(--k{n}); }}" in styles and styles.count(f" --k{n}: #") == 2 for n in range(1, kinds.N_TONES + 1))
    assert len(set(map(figures.colour, fixed))) == 8 and len(figures.MARKS) == kinds.N_TONES


def test_all_entries_of_a_long_legend_are_on_the_figure():
    def plotted(names):
        figure, axes = figures._figure(4.4, 3.0)
        for name in names:
            axes.plot([0, 1], [0, 1], label=name)
        figures._legend(figure, 4)
        box = figure.legends[0].get_window_extent()
        return len(figure.legends), box.x0 >= 0 and box.x1 <= figure.bbox.width, figure.get_figheight()
    assert plotted(["CAM", "LPCAM-F", "LPCAM", "IRN"]) == (1, True, 3.0)
    assert plotted([f"Guided Grad-CAM {number}" for number in range(14)]) == (1, True, pytest.approx(3.0 + 5 * figures.LEGEND_LINE))


def test_the_colours_of_kinds_begin_again_after_the_last(monkeypatch):
    monkeypatch.setattr(kinds, "titles", lambda further: {f"kind {n}": "" for n in range(10)})
    assert list(kinds.tones(f"kind {n}" for n in range(10)).values()) == [f"k{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 1, 2)]


def test_results_and_the_maps_they_were_made_from(smoke):
    config = smoke().config
    assert {kind: found for kind in titles() if (found := made_from(config, kind))} == {
        "make_lpcam": "make_cam", "make_amn_lpcam": "make_amn", "make_sem_seg_labels": "make_lpcam", "make_ins_seg_labels": "make_lpcam"}
    assert made_from(smoke("seed_maps=make_cam").config, "make_sem_seg_labels") == "make_cam"
    assert made_from(config, "eval_cam") is None


def test_scores_with_other_measures_have_a_table_of_their_own(smoke, outputs):
    run = smoke().recorded(outputs / "smoke")
    run.summary["scores"]["make_ins_seg_labels"] = {
        "title": "instances", "step": "eval_ins_seg", "measures": {"ap": "AP50", "coco_ap": "COCO's AP"}, "ap": 0.5, "coco_ap": 0.25,
        "columns": {"objects": "objects"}, "objects": 1234, "images": 24, "threshold": 0.1, "threshold_source": "set"}
    masks, instances = score_tables(run)
    assert masks["heads"] == ["FP", "FN", "precision", "recall", "mIoU"] and masks["with_oracle"] and len(masks["rows"]) == 4
    assert instances["heads"] == ["COCO's AP", "AP50"] and instances["columns"] == ["objects"] and not instances["with_oracle"]
    assert [cell["value"] for cell in instances["rows"][0]["cells"]] == ["25.0", "50.0"]
    found = read(page.write_report(run))
    assert "mIoU, percent instances 50.0 AP50, percent" in found.text and "instances 25.0 50.0 0.10 1,234 24" in found.text
    assert "The bar is pseudo masks" in found.text


def test_lines_that_coincide_are_dashed_and_named(smoke, outputs):
    x, y = [0.0, 0.5, 1.0], [0.1, 0.6, 0.2]
    lines = [Line(x, y, "one"), Line(x, [0.1, 0.602, 0.2], "two"), Line(x, [0.1, 0.5, 0.2], "three"), Line(x, y, "four")]
    under = figures.coinciding([(line.x, line.y) for line in lines])
    assert under == [None, 0, None, 0]
    assert figures.coinciding([(x, [0.1, None, 0.2]), (x, [0.1, None, 0.2]), (x, y), ([0.0, 1.0], [0.1, 0.2])]) == [None, 0, None, None]
    assert len({str(figures.dashes(under, number)) for number in range(4)}) == 3 and figures.dashes(under, 2) == "-"
    drawn = figures.plot(Curve("t", "x", "y", lines, section="thresholds"))
    assert "one, two and four coincide (dashed)." in drawn and drawn.count("stroke-dasharray") >= 2
    assert "coincide" not in figures.plot(Curve("t", "x", "y", lines[1:3], section="thresholds"))
    runs = figures.dots(["a", "b"], ["first", "second"], np.array([[50.0, 50.0], [60.0, 60.0]]), "mIoU")
    assert "first and second coincide (dashed)." in runs


def test_figures_take_their_colours_from_the_page_and_share_no_ids():
    names = ["background", "$sign$", "猫 & <dog>", *(f"class {i}" for i in range(2, 80))]
    matrix = figures.confusion_matrix(np.random.default_rng(0).integers(0, 9, (81, 81)), names, "many classes", "mask")
    line = Line([0, 0.5, 1], [0.1, 0.3, None], kind="make_cam", marks=[(0.5, True), (0.5, False)])
    curve = figures.plot(Curve("curve", "x", "y", [line], percent=True, section="thresholds"))
    both = Page(matrix + curve)
    assert len(both.ids) == len(set(both.ids)) and "class 79" in both.text and "$sign$" in both.text and "猫 & <dog>" in both.text
    assert "var(--k1)" in curve and "CAM" in both.text and "#0101" not in curve + matrix and "<style" not in curve
    assert all(address.startswith(("#", "data:")) for address in both.addresses)


@pytest.fixture
def two(smoke, outputs) -> Path:
    smoke("name=other", "make_sem_seg_labels.bg_threshold=0.3", "reuse_from=[smoke]").run()
    return outputs


def test_runs_side_by_side(smoke, two, capsys):
    assert act(smoke("action=compare", "runs=[smoke,other]")) == 0
    out = capsys.readouterr().out
    assert re.search(r"make_sem_seg_labels.bg_threshold +null +0.3", out) and "refiner.beta" not in out
    assert re.search(r"pseudo masks +\d+\.\d +\d+\.\d \([+-]\d+\.\d\)", out) and re.search(r"images the same +\d+ of 24", out)
    path = two / "compare-smoke-other.html"
    assert f"Page: {path}" in out
    found = read(path)
    assert found.tiles and "make_sem_seg_labels.bg_threshold" in found.text
    share = float(re.search(r"pixels changed +(\d+\.\d) %", out)[1])
    masks = [[read_mask(two / run / f"make_sem_seg_labels/train_{i:04d}.png") for i in range(24)] for run in ("smoke", "other")]
    assert share == pytest.approx(100 * np.mean([(a != b).mean() for a, b in zip(*masks)]), abs=0.051)


@pytest.mark.parametrize(("action", "written"), [("report", "page.write_report"), ("compare", "compare.write_comparison")])
def test_what_is_read_is_claimed_and_what_is_made_now_left_out(smoke, two, monkeypatch, action, written):
    seen = []
    monkeypatch.setattr(f"pipeline.report.{written}", lambda runs, *_, **__: seen.append((runs, [
        {step for claim in smoke(f"name={name}").folder.claims.living() for step in claim.reads} for name in ("smoke", "other")])))
    with smoke().folder.claims.hold([("make_lpcam", 0, 1)], []):
        getattr(smoke("runs=[smoke,other]", f"action={action}") if action == "compare" else smoke(), action)()
    ((runs, (here, there)),) = seen
    run = runs[0] if action == "compare" else runs
    assert here == set(run.by_name) - {"make_lpcam"} and there == (set(run.by_name) if action == "compare" else set())
    assert run.place("make_lpcam") is None and run.by_name["make_lpcam"].why == "another process makes it now"


def test_only_what_can_change_a_result_differs(smoke, two):
    moved = smoke(f"data.root={two / '.data'}")   # of the copy
    runs = [moved.recorded(two / name) for name in ("smoke", "other")]
    assert runs[0].dataset.root.parent == two / ".data"
    assert [key for key, _ in config_differences(runs)] == ["make_sem_seg_labels.bg_threshold"]
    runs[0].composed.train_cam.checkpoint_steps = 999                  # changes no result
    runs[0].composed.make_lpcam.prototype_split = "some.txt"           # names a list
    assert [key for key, _ in config_differences(runs)] == ["make_lpcam.prototype_split", "make_sem_seg_labels.bg_threshold"]


def test_runs_that_cannot_be_compared_are_refused(smoke, two, capsys):
    with pytest.raises(ConfigError, match="needs at least two different runs, got: smoke"):
        smoke("action=compare", "runs=[smoke,smoke]").compare()
    with pytest.raises(ConfigError, match="there is no run .*smoek.*; did you mean 'smoke'"):
        smoke("action=compare", "runs=[smoke,smoek]").compare()
    with pytest.raises(ConfigError, match="runs=.* is not possible: expected no value, except with action=compare"):
        smoke("runs=[smoke]")
    shutil.rmtree(two / "other/eval_sem_seg")
    shutil.rmtree(two / "other/make_sem_seg_labels")
    smoke("action=compare", "runs=[smoke,other]").compare()
    assert "Not all of these runs have pseudo masks" in read(two / "compare-smoke-other.html").text
    assert find_run("runs", str(two / "other"), "elsewhere") == (two / "other").resolve()


@pytest.mark.slow
@needs_browser
def test_the_browser_tells_what_a_page_asks_for_and_says(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<img src='http://localhost:50999/a.png'><script>console.error('one'); two();</script>")
    shown = show(page, tmp_path)
    assert shown.asked == ["http://localhost:50999/a.png"]
    assert any("one" in line for line in shown.console) and any("two is not defined" in line for line in shown.console)


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_report_in_a_browser(report, tmp_path, width):
    shown = show(report, tmp_path, width=width, script="document.title = document.documentElement.scrollWidth <= innerWidth")
    assert shown.console == [] and shown.asked == []
    assert "<title>true</title>" in shown.html, "wider than the window"
    assert len(shown.tiles()) == 24 and "24 of 24</output>" in shown.html


@pytest.mark.slow
@needs_browser
def test_the_galleries_filter_and_sort(report, tmp_path):
    everything = show(report, tmp_path).html
    facts = {found[1]: (float(found[2]), dict(pair.split(":") for pair in found[3].split())) for found in re.finditer(
        r'data-id="([^"]*)" data-tags="[^"]*" data-miou="([^"]*)" data-iou="([^"]*)"', everything)}
    low = show(report, tmp_path, "#sort=low").tiles()
    assert [facts[image_id][0] for image_id in low] == sorted(miou for miou, _ in facts.values())
    flowers = show(report, tmp_path, "#class=7&sort=high").tiles()
    wanted = {image_id: float(iou["7"]) for image_id, (_, iou) in facts.items() if "7" in iou}
    assert set(flowers) == set(wanted) and [wanted[image_id] for image_id in flowers] == sorted(wanted.values(), reverse=True)
    acted = show(report, tmp_path, script="""
        const form = document.getElementById("filter");
        form.class.value = "7"; form.sort.value = "id"; form.sort.dispatchEvent(new Event("change", {bubbles: true}));
        document.title = location.hash;
        document.querySelectorAll("#class-table th button")[2].click();""")
    assert acted.tiles() == sorted(wanted) and acted.console == []
    assert "class=7" in re.search("<title>(.*?)</title>", acted.html)[1]
    column = re.findall(r'data-sort="([\d.-]+)"', re.search(r'id="class-table".*?</table>', acted.html, re.S)[0])[2::6]
    assert [float(value) for value in column] == sorted(map(float, column), reverse=True)


@pytest.mark.slow
@needs_browser
def test_a_comparison_in_a_browser(smoke, two, tmp_path):
    _, path = smoke("action=compare", "runs=[smoke,other]").compare()
    shown = show(path, tmp_path, "#show=worse")
    assert shown.console == [] and shown.asked == [] and 0 < len(shown.tiles()) < 24


@pytest.mark.slow
@needs_browser
def test_the_report_of_ten_thousand_images_is_small_and_opens_at_once(tmp_path):
    found = measure(10_582, tmp_path / "many")
    print(found)
    assert found["mb"] < 20 and images.FILE in {path.name for path in Path(found["path"]).parent.iterdir()}
    shown = show(Path(found["path"]), tmp_path, real_time=True, script="""
        addEventListener("load", () => { const [entry] = performance.getEntriesByType("navigation");
                                         document.title = `${Math.round(entry.loadEventStart)} ms`; });""")
    opened = float(re.search(r"<title>(\d+) ms</title>", shown.html)[1])
    print(opened)
    assert opened < 2000 and shown.console == [] and len(shown.tiles()) > 100
