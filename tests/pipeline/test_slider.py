"""The threshold slider of the report: its masks are those of Python, in a real browser too."""

import base64
import json
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from pipeline import Pipeline
from pipeline.report.page import write_report
from pipeline.report.pieces import pieces
from pipeline.report.slider import SHOWN, choose_images, levels, slider
from steps.parts.pieces import Adjustable
from steps.runtime.artifacts import Maps
from tests.browser import needs_browser, show
from tests.conftest import SMOKE, copied
from wsss.metrics.semantic import THRESHOLDS
from wsss.palette import IGNORE, VOC_PALETTE
from wsss.refinement.masks import mask_of, with_background

SETTINGS = {"CAM": ["eval_cam.threshold.make_cam"], "LPCAM-F": ["eval_cam.threshold.make_lpcam_fg_only"],
            "LPCAM": ["eval_cam.threshold.make_lpcam"],
            "confident labels": ["cam_to_ir_label.conf_fg", "cam_to_ir_label.conf_bg"],
            "pseudo masks": ["make_sem_seg_labels.bg_threshold"]}
# Moves the slider of each kind and writes what the canvases show into the page: per kind and image its pixels as RGBA in base64.
ACT = """
(async () => {
  const form = document.getElementById("slider"), found = {};
  const settled = async (before) => { while (form.dataset.drawn === before) await new Promise((go) => setTimeout(go, 5)); };
  for (const option of form.kind.options) {
    form.kind.value = option.value;
    let before = form.dataset.drawn;
    form.kind.dispatchEvent(new Event("change", {bubbles: true}));
    await settled(before);
    const inputs = [...form.querySelectorAll("[name=value]")].filter((input) => !input.parentNode.hidden);
    for (const [number, input] of inputs.entries()) {
      before = form.dataset.drawn;
      input.value = VALUES[number];
      input.dispatchEvent(new Event("input", {bubbles: true}));
      await settled(before);
    }
    found[option.text] = {setting: [...document.querySelectorAll("#setting code")].map((code) => code.textContent), masks: {}};
    for (const figure of document.querySelectorAll(".cut:not([hidden])")) {
      const canvas = figure.querySelector("canvas"), {width, height} = canvas;
      const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
      found[option.text].masks[figure.querySelector("b").textContent] = [height, width, btoa(String.fromCharCode(...data)),
                                                                         canvas.getAttribute("aria-label")];
    }
  }
  const out = document.createElement("pre");
  out.id = "found"; out.textContent = JSON.stringify(found);
  document.body.append(out);
})();"""


@pytest.fixture(scope="module")
def run(smoke_outputs, tmp_path_factory):
    pipeline = Pipeline.compose(*SMOKE, f"outputs={copied(smoke_outputs, tmp_path_factory.mktemp('slider') / 'outputs')}")
    return pipeline.recorded(pipeline.folder.path)


def content(run, shown=None):
    missing: list[str] = []
    found = pieces(run, missing)
    of_train = {image_id: {"random"} for image_id in run.dataset.lists["train"]}
    return slider(run, found, shown or of_train, missing), [piece for _, piece in found if isinstance(piece, Adjustable)], missing


@pytest.fixture(scope="module")
def made(run):
    return content(run)


def expected(piece: Adjustable, image: dict, high: float, low: float) -> np.ndarray:
    maps, classes = piece.read(image["id"], (image["height"], image["width"]))
    mask, above = (mask_of(with_background(maps, threshold), classes) for threshold in (high, low))
    return np.where((mask == 0) & (above > 0), IGNORE, mask)


def test_every_kind_of_map_has_its_setting_and_equal_maps_are_stored_once(made):
    found, _, missing = made
    data = found["data"]
    assert {kind["title"]: [key for key, _ in kind["settings"]] for kind in data["kinds"]} == SETTINGS and missing == []
    assert all(0 <= value <= 1 for kind in data["kinds"] for _, value in kind["settings"])
    assert len(found["images"]) == SHOWN
    lpcam, confident = (kind["images"] for kind in data["kinds"][2:4])
    assert [each["maps"] for each in lpcam] == [each["maps"] for each in confident]
    assert len(data["maps"]) == len(set(data["maps"]))
    assert sum(map(len, data["maps"])) < 60_000 * len(found["images"])


@pytest.mark.parametrize("step", [0, 7, 30, 55, 99, 100])
def test_the_stored_levels_give_the_masks_of_every_threshold(made, step):
    found, adjustable, _ = made
    for kind, piece in zip(found["data"]["kinds"], adjustable, strict=True):
        image, stored = found["images"][0], kind["images"][0]
        packed = zlib.decompress(base64.b64decode(found["data"]["maps"][stored["maps"]]))
        greatest, which = np.cumsum(np.frombuffer(packed, np.uint8), dtype=np.uint8).reshape(2, image["height"], image["width"])
        mask = np.where(greatest > step, np.array(stored["values"], np.uint8)[which], 0)
        np.testing.assert_array_equal(mask, expected(piece, image, THRESHOLDS[step], THRESHOLDS[step]), kind["title"])


def test_a_value_at_a_threshold_is_background_and_the_first_of_equal_maps_wins():
    at = np.float32([[0.3, np.nextafter(np.float32(0.3), np.float32(1))]])
    assert levels(np.stack([at - 0.1, at, at]))[0].tolist() == [[30, 31]]
    assert levels(np.stack([at - 0.1, at, at]))[1].tolist() == [[1, 1]]
    assert levels(np.float32([[[-0.5, 1.0]]]))[0].tolist() == [[0, 100]]


def test_the_images_are_those_of_the_galleries_in_turn(run, made):
    _, adjustable, _ = made
    ids = run.dataset.lists["train"]
    shown = {image_id: {tag} for image_id, tag in zip(ids, ["best"] * 8 + ["worst"] * 8 + ["random"] * 8)}
    chosen = choose_images(run, shown, adjustable)
    assert len(chosen) == SHOWN and {tag: sum(shown[image_id] == {tag} for image_id in chosen) for tag in ("best", "worst", "random")} == {
        "best": 4, "worst": 4, "random": 4}
    assert choose_images(run, {ids[0]: {"class"}}, adjustable) == [ids[0]] and choose_images(run, {}, adjustable) == []


def test_maps_that_cannot_be_read_are_left_out(run, made, monkeypatch):
    lost = made[0]["images"][0]["id"]
    whole = Maps.at
    monkeypatch.setattr(Maps, "at", lambda maps, image_id, *args: Maps.facts(maps, "nobody") if image_id == lost else whole(maps, image_id, *args))
    again, _, missing = content(run)
    assert [kind["images"][0] for kind in again["data"]["kinds"]] == [None] * 5 and all(kind["images"][1] for kind in again["data"]["kinds"])
    assert len(missing) == 5 and all("has no maps of 'nobody'" in line for line in missing)


def test_without_masks_the_thresholds_in_use_can_be_moved(run):
    """Those of the labels and of the pseudo masks, from the maps alone."""
    folder = run.folder.path
    shutil.move(folder / "eval_cam", folder / "eval_cam.gone")
    try:
        found, _, _ = content(run)
    finally:
        shutil.move(folder / "eval_cam.gone", folder / "eval_cam")
    assert [kind["title"] for kind in found["data"]["kinds"]] == ["confident labels", "pseudo masks"]


@pytest.mark.slow
@needs_browser
def test_the_browser_cuts_as_python_does(run, tmp_path):
    page = write_report(run)
    high, low = 0.62, 0.37
    shown = show(page, tmp_path, script=ACT.replace("VALUES", json.dumps([high, low])))
    of_the_page = [line for line in shown.console if "Multiple readback operations" not in line]   # those of the script above
    assert of_the_page == [] and shown.asked == []
    drawn = json.loads(re.search(r'<pre id="found">(.*?)</pre>', shown.html, re.S)[1].replace("&gt;", ">"))
    found = json.loads(re.search(r'id="slider-data">(.*?)</script>', shown.html, re.S)[1])
    missing: list[str] = []
    adjustable = {kind["title"]: piece for kind, piece in zip(found["kinds"], (
        piece for _, piece in pieces(run, missing) if isinstance(piece, Adjustable)), strict=True)}
    assert set(drawn) == set(SETTINGS)
    for title, piece in adjustable.items():
        values = (high, low) if title == "confident labels" else (high, high)
        assert drawn[title]["setting"] == [f"{key}={value}" for key, value in zip(SETTINGS[title], values)]
        assert len(drawn[title]["masks"]) == SHOWN
        wrong = pixels = classes = 0
        for image_id, (height, width, rgba, label) in drawn[title]["masks"].items():
            rgba = np.frombuffer(base64.b64decode(rgba), np.uint8).reshape(height, width, 4)
            mask = expected(piece, {"id": image_id, "height": height, "width": width}, *values)
            right = np.where(mask[..., None] > 0, np.dstack([VOC_PALETTE[mask], np.full_like(mask, 255)]), 0)
            wrong, pixels, classes = wrong + (rgba != right).any(axis=2).sum(), pixels + mask.size, classes + (mask > 0).sum()
            assert label.startswith("mask: ")
        assert wrong <= 0.001 * pixels and 0 < classes < pixels, (title, wrong, pixels)


@pytest.mark.slow
@needs_browser
def test_the_slider_needs_no_mouse_and_fits_a_telephone(run, tmp_path):
    page: Path = write_report(run)
    html = page.read_text()
    section = re.search(r'<section id="choose">.*?</section>', html, re.S)[0]
    for found in re.findall(r"<(?:input|select)[^>]*>", section):   # each inside its label
        assert re.search(rf"<label[^>]*>(?:(?!</label>).)*{re.escape(found)}", section, re.S), found
    assert section.count('type="range"') == 2 and 'role="img"' in section
    shown = show(page, tmp_path, "#choose", width=390, script="""
        setTimeout(() => { document.title = document.documentElement.scrollWidth <= innerWidth && document.querySelectorAll(
          '.range:not([hidden])').length === 1 && document.querySelector('.range span').textContent !== ''; }, 500);""")
    assert "<title>true</title>" in shown.html and shown.console == []
