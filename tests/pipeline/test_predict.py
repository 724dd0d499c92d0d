"""action=predict: what a finished run makes of one image."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import Pipeline
from pipeline.actions._prediction import Prediction, write_prediction
from pipeline.commandline import act
from pipeline.plan.fingerprint import IMPORTED
from steps.runtime.artifacts import Maps
from tests.conftest import ROOT, rewritten
from wsss.data.drawing import CLASSES
from wsss.data.images import read_mask
from wsss.errors import ArtifactError, ConfigError, DataError

ONE, TWO = list(CLASSES)[0], list(CLASSES)[-1]


@pytest.fixture
def image_id(outputs) -> str:
    """Of an image whose mask is not empty."""
    return next(path.stem for path in sorted((outputs / "smoke/make_sem_seg_labels").glob("*.png")) if read_mask(path).any())


@pytest.fixture
def image(outputs, image_id, tmp_path) -> Path:
    """An image of the run's own list, elsewhere and with another name."""
    source = next((outputs / ".data").glob(f"*/images/{image_id}.*"))
    return Path(shutil.copy(source, tmp_path / f"my photo{source.suffix}"))


def look(outputs: Path, *overrides: str) -> Pipeline:
    return Pipeline.compose("name=smoke", "threads=1", f"outputs={outputs}", *overrides)


def test_an_image_of_the_run_comes_out_as_it_lies_in_the_run(outputs, image, image_id):
    run, maps = outputs / "smoke", Maps(outputs / "smoke/make_cam")
    pipeline = look(outputs)   # neither experiment nor data set are said: the run knows
    names = json.loads((run / "summary.json").read_text())["classes"][1:]
    prediction = pipeline.predict(image, [names[i] for i in maps.classes(image_id)])
    assert np.array_equal(prediction.maps["make_cam"], maps.at(image_id, "full").numpy())
    assert np.array_equal(prediction.maps["make_lpcam"], Maps(run / "make_lpcam").at(image_id, "full").numpy())
    assert np.array_equal(prediction.mask, read_mask(run / "make_sem_seg_labels" / f"{image_id}.png"))
    assert prediction.mask.any() and prediction.maps["walk"].shape == prediction.maps["make_cam"].shape and prediction.maps["walk"].max() == pytest.approx(1)
    assert prediction.threshold["threshold"] == json.loads((run / "make_sem_seg_labels/threshold.json").read_text())["threshold"]
    assert list(prediction.probabilities) == names and not (run / "predictions").exists()


def test_the_command_line_writes_pictures_and_arrays_and_says_where(outputs, image, capsys):
    words = ("action=predict", f"image='{image}'", "name=smoke")
    pipeline = Pipeline.compose("threads=1", f"outputs={outputs}", *words, f"classes=[{ONE},{TWO}]")
    assert act(pipeline) == 0
    folder, said = outputs / "smoke/predictions" / image.name, capsys.readouterr().out
    assert f"are in {folder}/" in said and f"classes: {ONE}, {TWO}" in said and "background threshold of the mask: 0." in said
    pictures = {f"{kind}_{name}.png" for kind in ("make_cam", "make_lpcam", "walk") for name in (ONE, TWO)}
    assert {path.name for path in folder.iterdir()} == pictures | {
        "make_cam.npy", "make_lpcam.npy", "walk.npy", "mask.npy", "mask.png", "mask_overlay.png", "prediction.json"}
    assert np.load(folder / "make_cam.npy").shape == (2, *np.load(folder / "mask.npy").shape)
    assert json.loads((folder / "prediction.json").read_text())["classes"] == [ONE, TWO]
    assert act(Pipeline.compose("threads=1", f"outputs={outputs}", *words, f"classes=[{TWO}]")) == 0   # replaces it
    assert {path.name for path in folder.glob("make_cam*.png")} == {f"make_cam_{TWO}.png"}


def test_each_class_has_a_picture_of_its_own(tmp_path):
    names = ("a/b", "a_b", "a%2Fb", "traffic light", "\u00e9", "A/B", "e\u0301", "<写>, " * 60)
    maps, image = np.zeros((8, 2, 2), np.float32), np.zeros((2, 2, 3), np.uint8)
    write_prediction(Prediction(image, names, {}, {"make_cam": maps}, None, None), tmp_path, {})
    index = json.loads((tmp_path / "prediction.json").read_text())["pictures"]
    assert tuple(index.values()) == names
    assert list(index)[:7] == ["a%2Fb", "a_b", "a%252Fb", "traffic%20light", "\u00e9", "A%2FB~2", "e%CC%81"]
    assert len(f"make_cam_{list(index)[7]}.png".encode()) < 255
    assert {path.name for path in tmp_path.glob("make_cam_*")} == {
        f"make_cam_{name}.png" for name in index}


def test_the_classifier_finds_the_classes(outputs, image, capsys):
    every = look(outputs, "class_threshold=0").predict(image)
    assert len(every.classes) == len(CLASSES) and all(0 < p < 1 for p in every.probabilities.values())
    most, second = sorted(every.probabilities.values())[-1:-3:-1]
    found = look(outputs, f"class_threshold={(most + second) / 2}").predict(image)
    assert found.classes == (max(every.probabilities, key=every.probabilities.get),)
    nothing = look(outputs, "class_threshold=0.999").predict(image)
    assert nothing.classes == () and not nothing.mask.any() and nothing.maps["make_cam"].shape == (0, *nothing.mask.shape)
    assert "no class has a probability above class_threshold=0.999 (the highest: " in capsys.readouterr().err


def test_maps_of_one_name_get_the_name_of_their_step(outputs, image, second_row, tmp_path):
    pipeline = look(outputs)
    second_row(pipeline, "make_sem_seg_labels")
    path = outputs / "smoke/second/manifest.json"
    facts = json.loads(path.read_text())
    facts["identity"]["refiner"]["exp_times"] = 1
    rewritten(path, identity=facts["identity"])
    prediction = pipeline.predict(image, [ONE])
    assert list(prediction.maps) == ["make_cam", "make_lpcam", "walk_make_sem_seg_labels", "walk_second"]
    assert not np.array_equal(prediction.maps["walk_make_sem_seg_labels"], prediction.maps["walk_second"])
    write_prediction(prediction, tmp_path / "written", {})
    assert {path.name for path in (tmp_path / "written").glob("walk*.npy")} == {"walk_make_sem_seg_labels.npy", "walk_second.npy"}


def test_the_classes_come_from_the_classifier_that_the_maps_use(outputs, image, second_row):
    """Though the run has another one before it."""
    pipeline, run = look(outputs), outputs / "smoke"
    before = pipeline.predict(image)
    second_row(pipeline, "train_cam")
    for path in run.glob("make_*/manifest.json"):
        path.write_text(path.read_text().replace('"train_cam"', '"second"'))
        rewritten(path)
    (run / "train_cam/weights.safetensors").unlink()
    prediction = pipeline.predict(image)
    assert prediction.probabilities == before.probabilities and prediction.classes == before.classes


def test_what_the_run_has_not_is_left_out(outputs, image, capsys):
    shutil.rmtree(outputs / "smoke/train_irn")
    prediction = look(outputs).predict(image, [ONE])
    assert prediction.mask is None and prediction.maps.keys() == {"make_cam", "make_lpcam"}
    shutil.rmtree(outputs / "smoke/make_lpcam")
    assert look(outputs).predict(image, [ONE]).maps.keys() == {"make_cam"}
    assert act(look(outputs, "action=predict", f"image='{image}'", f"classes=[{ONE}]", "artifacts.layout=packed")) == 0
    assert "no mask: " in capsys.readouterr().out
    shutil.rmtree(outputs / "smoke/make_cam")
    with pytest.raises(ConfigError, match="action=predict needs train_cam, make_cam, but .*smoke has no finished make_cam"):
        look(outputs).predict(image)


def test_imported_results_and_what_reads_them_are_left_out(outputs, image):
    def pretend(step: str) -> None:
        path = outputs / f"smoke/{step}/manifest.json"
        facts = json.loads(path.read_text())
        rewritten(path, sources={}, settings={}, identity={IMPORTED: "0" * 64, "data": facts["identity"]["data"]})
    pretend("make_lpcam")
    prediction = look(outputs).predict(image, [ONE])
    assert prediction.maps.keys() == {"make_cam"} and prediction.mask is None
    pretend("make_cam")
    with pytest.raises(ConfigError, match="action=predict cannot make the maps of .*smoke for another image: they were imported"):
        look(outputs).predict(image)


def test_nothing_is_chosen_again(outputs, image):
    (outputs / "smoke/make_lpcam/prototypes.npz").unlink()
    with pytest.raises(ArtifactError, match="make_lpcam/prototypes.npz does not exist. Run the step make_lpcam first"):
        look(outputs).predict(image, [ONE])


def test_what_cannot_be_is_refused(outputs, image, tmp_path):
    with pytest.raises(ConfigError, match=rf"the run has no class '{ONE}x'; did you mean '{ONE}'\? \(allowed: {ONE}, "):
        look(outputs).predict(image, [f"{ONE}x"])
    with pytest.raises(DataError, match="cannot read the image .*missing.jpg"):
        look(outputs).predict(tmp_path / "missing.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match="is damaged or not a JPEG, PNG"):
        look(outputs).predict(tmp_path / "text.jpg")
    with pytest.raises(ConfigError, match=r"there is no run .*smoek; did you mean 'smoke'\?"):
        look(outputs, "name=smoek").predict(image)
    with pytest.raises(ConfigError, match="class_threshold=1.0"):
        look(outputs, "class_threshold=1").predict(image)
    for words, message in ((["action=predict"], "image=None is not possible: expected an image file: image=FILE; or a folder"),
                           (["image=x.jpg"], "image='x.jpg' is not possible"), (["classes=[tiger]"], "classes=.*is not possible")):
        with pytest.raises(ConfigError, match=message):
            Pipeline.compose(*words)


def test_the_five_lines_of_the_readme(outputs, image, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    code = next(block for block in blocks if ".predict(" in block)
    assert len(code.strip().splitlines()) == 5
    monkeypatch.chdir(image.parent)   # where outputs/ is
    names: dict = {}
    exec(code.replace("photo.jpg", image.name).replace('"dog"', f'"{TWO}"'), names)
    assert names["prediction"].classes == (TWO,)
