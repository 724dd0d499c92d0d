"""action=predict images=DIR: masks of photographs without labels by the network of a run; `load_network`; action=export_onnx."""

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import pipeline.segmentation
from pipeline import Pipeline, load_network
from pipeline.commandline import act
from pipeline.runfolder.claims import Claims
from tests.conftest import ROOT, contents, copied, interrupted, rewritten
from wsss.data.drawing import CLASSES
from wsss.data.images import decode_mask, encode_mask, read_image, read_mask
from wsss.errors import ArgumentError, ArtifactError, BusyError, ConfigError, DataError
from wsss.overlays import overlay_mask

ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.fixture
def photos(trained, tmp_path) -> Path:
    """Photographs of several sizes, formats and orientations, one in a sub-folder; and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "trip 1").mkdir(parents=True)
    sources = sorted(next((trained / ".data").glob("*/images")).glob("val_*"))
    shutil.copy(sources[0], folder / f"a{sources[0].suffix}")
    shutil.copy(sources[1], folder / "trip 1" / f"é b{sources[1].suffix.upper()}")
    with Image.open(sources[2]) as image:
        exif = image.getexif()
        exif[0x0112] = 6   # a quarter turn
        image.convert("RGB").crop((0, 0, 90, 50)).save(folder / "turned.jpeg", exif=exif)
        image.convert("L").resize((250, 31)).save(folder / "grey.png")
    Image.new("RGB", (1, 1)).save(folder / "dot.webp")
    (folder / ".hidden").mkdir()
    for name in ("notes.txt", ".hidden/x.png", ".y.jpg"):
        (folder / name).write_text("no photograph")
    return folder


IDS = ["a", "dot", "grey", "trip 1/é b", "turned"]


def call(outputs: Path, photos: Path, out: Path, *words: str) -> int:
    return act(predicting(outputs, photos, out, *words))


def predicting(outputs: Path, photos: Path, out: Path, *words: str) -> Pipeline:
    names = () if any(word.startswith(("run=", "name=")) for word in words) else ("run=smoke",)
    return Pipeline.compose("action=predict", f"outputs={outputs}", f"images='{photos}'", f"out='{out}'", "threads=1", "device=cpu",
                            *names, *words)


def table(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def test_every_photograph_gets_a_mask_an_overlay_and_a_row(trained, photos, tmp_path, capsys):
    before, out = contents(trained / "smoke"), tmp_path / "out"
    assert call(trained, photos, out) == 0
    said = capsys.readouterr()
    assert f"5 photographs, 5 of them segmented now. masks/, overlays/ and predictions.csv are in {out}/" in said.out
    assert "ignored 1 files that are not .jpg, .jpeg, .png, .webp, .tif, .tiff, .bmp, for example notes.txt" in said.err
    for folder, suffix in (("masks", ".png"), ("overlays", ".jpg")):
        assert sorted(str(path.relative_to(out / folder).with_suffix("")) for path in (out / folder).rglob(f"*{suffix}")) == IDS
    rows, names = table(out), list(CLASSES)
    assert len(rows) == 5
    for file, row in rows.items():
        image, mask = read_image(photos / file), read_mask((out / "masks" / file).with_suffix(".png"))
        assert mask.shape == image.shape[:2] == (int(row["height"]), int(row["width"]))
        found = dict(zip(filter(None, row["classes"].split(";")), map(float, filter(None, row["shares"].split(";")))))
        assert found == pytest.approx({names[value - 1]: (mask == value).mean() for value in np.unique(mask) if value}, rel=1e-3)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        overlay = read_image((out / "overlays" / file).with_suffix(".jpg")).astype(int)
        assert np.abs(overlay - overlay_mask(image, mask)).mean() < 4
    assert read_image(photos / "turned.jpeg").shape == (90, 50, 3)
    assert contents(trained / "smoke") == before


def test_an_image_of_the_run_gets_the_mask_of_the_run(trained, photos, tmp_path):
    call(trained, photos, tmp_path / "out")
    image_id = min(path.stem for path in (trained / "smoke/infer_seg").glob("*.png"))
    assert (tmp_path / "out/masks/a.png").read_bytes() == (trained / f"smoke/infer_seg/{image_id}.png").read_bytes()
    one = Pipeline.compose("run=smoke", "action=predict", "image=x", f"outputs={trained}", "threads=1").predict(
        next(photos.glob("a.*")), [list(CLASSES)[0]])
    assert np.array_equal(one.mask, read_mask(trained / f"smoke/infer_seg/{image_id}.png")) and one.mask.any()


def test_of_several_networks_the_first_is_used(trained, photos, tmp_path, second_row):
    outputs = copied(trained, tmp_path / "outputs")
    one = Pipeline.compose("name=smoke", f"outputs={outputs}", "threads=1")
    second_row(one, "infer_seg")
    path = outputs / "smoke/second/manifest.json"
    facts = json.loads(path.read_text())
    rewritten(path, settings={**facts["settings"], "crf": False, "scales": [0.5]})
    run(outputs, photos, tmp_path / "out")
    assert json.loads((tmp_path / "out/predictions.json").read_text())["infer_seg"]["crf"]
    photo = next(photos.glob("a.*"))
    assert np.array_equal(one.predict(photo, [list(CLASSES)[0]]).mask, read_mask(tmp_path / "out/masks/a.png"))


def test_a_killed_call_continues_and_a_changed_file_is_made_again(trained, photos, tmp_path, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    call(trained, photos, whole)
    with interrupted(3):
        call(trained, photos, out)
    assert not (out / "predictions.csv").exists() and not (out / "index.jsonl").exists()
    assert call(trained, photos, out) == 0
    assert "5 photographs, 2 of them segmented now" in capsys.readouterr().out
    assert contents(out) == contents(whole)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.*g")}
    damaged = (out / "masks/a.png").read_bytes()
    (out / "masks/a.png").write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))   # as long as before
    (out / "overlays/trip 1/é b.jpg").unlink()
    shutil.copy(photos / "grey.png", photos / "dot.webp")
    assert call(trained, photos, out) == 0
    assert "5 photographs, 3 of them segmented now" in capsys.readouterr().out
    assert (out / "masks/a.png").read_bytes() == damaged and read_mask(out / "masks/dot.png").shape == (31, 250)
    again = {path.stem for path, time in made.items() if path.stat().st_mtime_ns != time}
    assert again == {"a", "é b", "dot"}
    assert call(trained, photos, out) == 0 and "0 of them segmented now" in capsys.readouterr().out


def test_a_call_that_is_asked_to_stop_says_how_to_continue(trained, photos, tmp_path, capsys, monkeypatch):
    from pipeline.console import Console
    monkeypatch.setattr(Console, "progress", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    assert call(trained, photos, tmp_path / "out") == 128 + signal.SIGTERM
    assert "the same command continues: python run_pipeline.py action=predict" in capsys.readouterr().err
    monkeypatch.undo()
    assert call(trained, photos, tmp_path / "out") == 0 and "4 of them segmented now" in capsys.readouterr().out


def test_a_broken_photograph_is_named_and_the_others_are_done(trained, photos, tmp_path, capsys):
    out = tmp_path / "out"
    (photos / "broken.jpg").write_bytes(next(photos.glob("a.*")).read_bytes()[:300])
    assert call(trained, photos, out) == 1
    said = capsys.readouterr().err
    assert "1 of 6 images failed, the others are done" in said and "broken.jpg is" in said
    assert len(table(out)) == 5 and list(json.loads((out / "failed.json").read_text())) == ["broken"]
    (photos / "broken.jpg").unlink()
    assert call(trained, photos, out) == 0 and not (out / "failed.json").exists() and len(table(out)) == 5


def test_settings_of_the_command_line_change_the_masks_and_are_recorded(trained, photos, tmp_path):
    call(trained, photos, tmp_path / "run")
    call(trained, photos, tmp_path / "plain", "infer_seg.crf=false", "infer_seg.flip=false", "infer_seg.scales=[1.0,1.5]")
    recorded = [json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("run", "plain")]
    assert [each["infer_seg"]["crf"] for each in recorded] == [True, False]
    assert recorded[1]["infer_seg"]["scales"] == [1.0, 1.5] and not recorded[1]["infer_seg"]["flip"]
    assert recorded[0]["run"] == str((trained / "smoke").resolve()) and recorded[0]["classes"] == list(CLASSES)
    assert (tmp_path / "run/masks/a.png").read_bytes() != (tmp_path / "plain/masks/a.png").read_bytes()
    net = load_network(trained / "smoke", "infer_seg.crf=false", "infer_seg.flip=false", "infer_seg.scales=[1.0,1.5]", "threads=1")
    mask = net(next(photos.glob("a.*")))
    assert encode_mask(mask) == (tmp_path / "plain/masks/a.png").read_bytes()
    assert np.array_equal(mask, net.probabilities(next(photos.glob("a.*"))).argmax(0))   # without a CRF
    with pytest.raises(ConfigError, match=r"was made otherwise \(infer_seg.scales: \[1.0, 1.5\] -> \[1.0\], infer_seg.flip: false -> true, "
                                          r"infer_seg.crf: false -> true\). Choose another folder"):
        run(trained, photos, tmp_path / "plain")


def run(outputs: Path, photos: Path, out: Path, *words: str) -> None:
    """As `call`, but errors are raised."""
    from pipeline.actions import predict
    predict.run(predicting(outputs, photos, out, *words))


def test_what_cannot_be_is_refused_before_work(trained, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(pipeline.segmentation, "SegmentationNetwork", None)   # no network is loaded
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    for folder, target, message in (
            (tmp_path / "none", out, "images=.*none is not a folder"),
            (tmp_path / "empty", out, "there is no photograph in .*empty: expected files .jpg, .jpeg, .png"),
            (photos, photos, "is the folder of the photographs or inside it"),
            (photos, photos / "masks", "is the folder of the photographs or inside it"),
            (photos, trained / "smoke/masks", "is the folder of the run or inside it"),
            (photos, tmp_path / "full/mine.txt", "mine.txt is a file")):
        with pytest.raises((ConfigError, DataError), match=message):
            run(trained, folder, target)
    with pytest.raises(ConfigError, match=r"run: there is no run 'smoek' with a finished step; did you mean 'smoke'\?"):
        run(trained, photos, out, "run=smoek")
    shutil.copy(photos / "dot.webp", photos / "a.PNG")
    (photos / " b.png").touch()
    with pytest.raises(DataError, match="(?s)2 problems.*' b' starts or ends with a blank.*would have the same mask, a.png; rename one"):
        run(trained, photos, out)
    assert not out.exists() and sorted(os.listdir(tmp_path / "full")) == ["mine.txt"]


def test_an_out_of_other_files_of_another_run_or_in_use_is_refused(trained, photos, tmp_path):
    out, outputs = tmp_path / "out", copied(trained, tmp_path / "outputs")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files, for example mine.txt, and no predictions.json"):
        run(trained, photos, tmp_path / "full")
    assert sorted(os.listdir(tmp_path / "full")) == ["mine.txt"]
    run(trained, photos, out)
    run(outputs, photos, out)   # the run may have moved
    shutil.copytree(photos, tmp_path / "others")
    with pytest.raises(ConfigError, match="was made otherwise .images: .*photos -> .*others"):
        run(trained, tmp_path / "others", out)
    with Claims(out).hold([("predict", 0, 1)], []), pytest.raises(BusyError, match="predict is in use by process"):
        run(trained, photos, out)
    record = json.loads((out / "predictions.json").read_text())
    (out / "predictions.json").write_text(json.dumps({**record, "weights_sha256": "0" * 64}))
    with pytest.raises(ConfigError, match="was made otherwise .weights_sha256"):
        run(trained, photos, out)


def test_keys_that_do_not_go_together_are_refused(trained, photos, tmp_path, smoke_outputs):
    for words, message in (
            (["run=smoke", "name=other"], "name='other' is not possible: expected no value with run=smoke, which names the run"),
            (["image=x.jpg"], "image='x.jpg' is not possible: expected no value with images="),
            (["classes=[cat]"], "classes=.* is not possible: expected no value with images=DIR"),
            (["shard=0/2"], "shard='0/2' is not possible")):
        with pytest.raises(ConfigError, match=message):
            predicting(trained, photos, tmp_path / "out", *words)
    with pytest.raises(ConfigError, match="out=None is not possible: expected a folder for the masks"):
        Pipeline.compose("action=predict", "images=x", "run=smoke")
    with pytest.raises(ConfigError, match="out='x' is not possible: expected no value with image=FILE"):
        Pipeline.compose("action=predict", "image=x", "out=x")
    with pytest.raises(ConfigError, match="image=.* is not possible: expected a file; for all images of a folder images=DIR run=NAME out=DIR"):
        Pipeline.compose("action=predict", f"image='{photos}'")
    with pytest.raises(ConfigError, match="run='x' is not possible: expected no value, except with action=export_onnx or features or predict"):
        Pipeline.compose("run=x")
    with pytest.raises(ConfigError, match="infer_seg.split='val' is not possible"):
        run(trained, photos, tmp_path / "out", "infer_seg.split=val")
    with pytest.raises(ConfigError, match="action=predict needs train_seg.*, but .*smoke has no finished train_seg"):
        run(smoke_outputs, photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(trained, photos, tmp_path / "named", "name=smoke")


def test_a_network_that_was_never_used_in_the_run_has_the_settings_of_the_recipe(trained, photos, tmp_path):
    outputs = copied(trained, tmp_path / "outputs")
    shutil.rmtree(outputs / "smoke/infer_seg")
    run(trained, photos, tmp_path / "one")
    run(outputs, photos, tmp_path / "other", "infer_seg.background_weight=1.0")   # that of CHOSEN; the rest is the recipe's
    assert contents(tmp_path / "one/masks") == contents(tmp_path / "other/masks")


def test_a_damaged_network_is_said_before_anything_is_written(trained, photos, tmp_path):
    outputs = copied(trained, tmp_path / "outputs")
    (outputs / "smoke/train_seg/weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="weights.safetensors cannot be read"):
        run(outputs, photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_python_gives_the_same_bytes_for_a_file_an_array_and_a_pil_image(trained, photos, tmp_path, monkeypatch):
    call(trained, photos, tmp_path / "out")
    monkeypatch.chdir(trained.parent)
    net = load_network("smoke", f"outputs={trained}", "threads=1")
    assert net.classes == tuple(CLASSES) and net.settings.crf
    for file in table(tmp_path / "out"):
        path = photos / file
        with Image.open(path) as image:
            forms = [str(path), path, read_image(path), image]
            masks = [net(form) for form in forms]
        expected = (tmp_path / "out/masks" / file).with_suffix(".png").read_bytes()
        assert all(encode_mask(mask) == expected for mask in masks), file
        soft = net.probabilities(path)
        assert soft.shape == (9, *masks[0].shape) and soft.dtype == np.float32 and soft.sum(0) == pytest.approx(1, abs=1e-5)
        assert np.array_equal(decode_mask(expected, path), masks[0])
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), Image.new("I;16", (4, 4))):
        with pytest.raises(ArgumentError, match="image: "):
            net(wrong)
    with pytest.raises(DataError, match="cannot read the image"):
        net(tmp_path / "none.jpg")


def test_the_lines_of_the_documents(trained, photos, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.S)
    code = next(block for block in blocks if "load_network" in block)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code.replace("outputs/NAME", str(trained / "smoke")).replace("photo.jpg", str(next(photos.glob("a.*")))), names)
    assert names["mask"].dtype == np.uint8 and names["mask"].shape == names["soft"].shape[1:]


# ONNX.

onnx = pytest.mark.skipif(not ONNX, reason='pip install -e ".[onnx]"')


def exporting(outputs: Path, out: Path, *words: str) -> Pipeline:
    return Pipeline.compose("action=export_onnx", f"outputs={outputs}", "run=smoke", f"out='{out}'", "threads=1", *words)


@onnx
def test_the_exported_network_gives_the_probabilities_of_the_run_with_its_description(trained, photos, tmp_path, capsys):
    import onnxruntime
    out = tmp_path / "net.onnx"
    assert act(exporting(trained, out)) == 0
    assert "onnxruntime differs from torch by at most" in capsys.readouterr().out
    facts, session = json.loads(out.with_suffix(".json").read_text()), onnxruntime.InferenceSession(out)
    metadata = session.get_modelmeta().custom_metadata_map
    described = {key: value for key, value in facts.items() if key in metadata}
    assert described == {key: json.loads(value) if not isinstance(described[key], str) else value for key, value in metadata.items()}
    assert {"input", "mean", "std", "range", "resize", "labels", "output_content", "weights_sha256"} <= described.keys()
    assert facts["labels"] == ["background", *CLASSES] and facts["largest_difference"] <= 1e-4
    net = load_network(trained / "smoke", "infer_seg.crf=false", "infer_seg.flip=false", "threads=1")
    for path in photos.glob("[!.]*.*g"):   # as the description says it
        image = read_image(path)
        x = ((image / 255 - facts["mean"]) / facts["std"]).astype(np.float32).transpose(2, 0, 1)[None]
        soft, = session.run([facts["output"]], {facts["input"]: x})
        assert soft.shape == (1, 9, *image.shape[:2])
        assert np.abs(soft[0] - net.probabilities(path)).max() < 1e-4
    with pytest.raises(ConfigError, match="net.onnx exists. Set force=true"):
        exporting(trained, out).export_onnx()
    assert exporting(trained, out, "force=true").export_onnx() == facts


@onnx
def test_what_cannot_be_exported_to_is_refused(trained, smoke_outputs, tmp_path):
    with pytest.raises(ConfigError, match=r"out='net.txt' is not possible: expected a file to write: out=FILE.onnx"):
        Pipeline.compose("action=export_onnx", "run=smoke", "out=net.txt")
    with pytest.raises(ConfigError, match="is inside the run"):
        exporting(trained, trained / "smoke/net.onnx").export_onnx()
    with pytest.raises(ConfigError, match="action=export_onnx needs train_seg.*, but .* has no finished train_seg"):
        exporting(smoke_outputs, tmp_path / "net.onnx").export_onnx()


def test_missing_packages_are_said_before_work(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.actions.export_onnx.PACKAGES", ("onnx_gone", "json"))
    assert act(exporting(trained, tmp_path / "net.onnx")) == 1
    assert 'action=export_onnx needs the packages onnx_gone. Install them: pip install -e ".[onnx]"' in capsys.readouterr().err


def test_images_of_all_formats_are_read_with_the_range_and_the_limit_of_the_run(trained, tmp_path):
    outputs, photos, out = copied(trained, tmp_path / "outputs"), tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for suffix in ("bmp", "webp", "TIF", "tiff"):
        Image.new("RGB", (40, 30), "green").save(photos / f"{suffix}.{suffix}")
    Image.fromarray(np.full((30, 40), 4095, np.uint16)).save(photos / "deep.png")
    Image.new("RGB", (80, 60)).save(photos / "large.png")
    for path in (outputs / "smoke").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["identity"]["data"]["range"] = [0, 4095]
        rewritten(path, identity=manifest["identity"])
    config = OmegaConf.load(outputs / "smoke/config.yaml")
    config.data.max_pixels = 2000
    OmegaConf.save(config, outputs / "smoke/config.yaml")
    assert call(outputs, photos, out) == 1
    assert sorted(path.stem for path in (out / "masks").iterdir()) == ["TIF", "bmp", "deep", "tiff", "webp"]
    [(name, why)] = json.loads((out / "failed.json").read_text()).items()
    assert name == "large" and "has 4,800 pixels; expected at most 2,000" in str(why)
