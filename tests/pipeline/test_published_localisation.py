"""The published tables of localisation: every cell, from the texts of the tables."""

import pytest

from pipeline.report.tables import load_papers

PAPERS = {paper.paper.rpartition("(")[2].rstrip(")"): paper for paper in load_papers()}
CAM = {
    "Classification error on the ILSVRC validation set":
        "VGGnet-GAP 33.4/12.2; GoogLeNet-GAP 35.0/13.2; AlexNet*-GAP 44.9/20.9; AlexNet-GAP 51.1/26.3; GoogLeNet 31.9/11.3; VGGnet 31.2/11.4; "
        "AlexNet 42.6/19.5; NIN 41.9/19.6; GoogLeNet-GMP 35.6/13.9",
    "Localisation error on the ILSVRC validation set":
        "GoogLeNet-GAP 56.40/43.00; VGGnet-GAP 57.20/45.14; GoogLeNet 60.09/49.34; AlexNet*-GAP 63.75/49.53; AlexNet-GAP 67.19/52.16; NIN "
        "65.47/54.19; Backprop on GoogLeNet 61.31/50.55; Backprop on VGGnet 61.12/51.46; Backprop on AlexNet 65.17/52.64; GoogLeNet-GMP "
        "57.78/45.26",
    "Localisation error on the ILSVRC test set":
        "GoogLeNet-GAP (heuristics) 37.1; GoogLeNet-GAP 42.9; Backprop 46.4; GoogLeNet 26.7; OverFeat 29.9; AlexNet 34.2",
    "CUB-200-2011": "full image 63.0; bounding boxes at training and test 70.5; boxes with an IoU of at least 0.5 41.0; chance 5.5"}
GRADCAM = {"Localisation and classification error on the ILSVRC validation set":
           "Backprop on VGG-16 61.12/51.46/30.38/10.89; c-MWP on VGG-16 70.92/63.04/30.38/10.89; Grad-CAM on VGG-16 56.51/46.41/30.38/10.89; "
           "VGG-16-GAP (CAM) 57.20/45.14/33.40/12.20"}
FCAM = """CAM | 71.1 62.1 73.2 68.8 | 58.1 61.4 58.0 59.1
HaS | 76.3 57.7 78.1 70.7 | 56.9 59.5 58.2 57.8
ACoL | 72.3 59.6 72.7 68.2 | 54.7 63.0 57.8 58.4
SPG | 63.7 62.8 71.4 66.0 | 55.9 62.4 57.7 58.6
ADL | 75.7 63.4 73.5 70.8 | 58.3 62.1 54.3 58.2
CutMix | 71.9 65.5 67.8 68.4 | 58.2 61.7 58.7 59.5
best of these | 76.3 65.5 78.1 70.8 | 58.3 63.0 58.7 59.5
fully supervised | 86.3 94.0 95.8 92.0 | 61.5 70.3 74.4 68.7
centre baseline | 59.7 59.7 59.7 59.7 | 45.8 45.8 45.8 45.8
CAM* | 61.6 58.8 71.5 63.9 | 53.0 62.7 56.8 57.5
Grad-CAM | 69.3 62.3 73.1 68.2 | 59.6 63.9 60.1 61.2
Grad-CAM++ | 84.1 63.3 81.9 76.4 | 60.5 64.0 60.2 61.5
Smooth-Grad-CAM++ | 69.7 66.9 76.3 70.9 | 52.2 61.7 54.3 56.0
XGrad-CAM | 69.3 60.9 72.7 67.6 | 59.0 63.9 60.2 61.0
LayerCAM | 84.3 66.5 85.2 78.6 | 59.5 63.5 61.1 61.3
CAM* + F-CAM | 87.3 82.0 90.3 86.5 | 67.8 71.9 72.1 70.6
Grad-CAM + F-CAM | 87.5 84.4 90.5 87.4 | 68.6 70.0 70.9 69.8
Grad-CAM++ + F-CAM | 91.5 84.6 91.0 89.0 | 64.8 67.1 66.3 66.0
Smooth-Grad-CAM++ + F-CAM | 89.1 86.8 90.7 88.8 | 60.3 65.4 64.4 63.3
XGrad-CAM + F-CAM | 86.8 84.4 90.4 88.8 | 68.7 71.3 70.4 70.1
LayerCAM + F-CAM | 91.0 85.3 92.4 89.7 | 64.3 64.9 65.3 64.8
best + F-CAM | 91.5 86.8 92.4 89.7 | 68.7 71.9 72.1 70.6"""
# milliseconds, seconds and minutes as printed
RUNTIME = """CAM* | .2 ms .2 ms .3 ms
Grad-CAM | 7.7 ms 21.1 ms 27.8 ms
Grad-CAM++ | 23.5 ms 23.7 ms 28.0 ms
Smooth-Grad-CAM | 62.0 ms 150.7 ms 136.2 ms
XGrad-CAM | 2.9 ms 19.2 ms 14.2 ms
LayerCAM | 3.2 ms 18.2 ms 17.9 ms
mean | 16.6 ms 38.8 ms 37.4 ms
F-CAM + STDCL | 6.2 ms 25.5 ms 18.5 ms
ACoL | 12.0 ms 19.2 ms 24.9 ms
SPG | 11.0 ms 18 ms 23.9 ms
ADL | 6.4 ms 16.0 ms 14.4 ms
ScoreCAM | 1.9 s 3.4 s 9.3 s
SS-CAM | 105 s 136 s 349 s
IS-CAM | 30.1 s 39.0 s 99 s"""


def cells(paper: str) -> dict[str, list[tuple]]:
    """caption -> (name of the row, values)."""
    return {table.caption: [(row.name, row.values) for row in table.rows] for table in PAPERS[paper].tables}


@pytest.mark.parametrize(("paper", "printed"), [("CAM", CAM), ("Grad-CAM", GRADCAM)])
def test_the_tables_of_cam_and_gradcam_are_all_there(paper, printed):
    def read(line):
        name, _, values = line.rpartition(" ")
        return name, [float(value) for value in values.split("/")]
    assert cells(paper) == {caption: [read(line) for line in text.split("; ")] for caption, text in printed.items()}


def test_the_tables_of_fcam_are_all_there():
    found, lines = cells("F-CAM"), [[part.strip() for part in line.split("|")] for line in FCAM.splitlines()]
    for number, caption in ((1, "MaxBoxAcc on CUB-200-2011, test"), (2, "PxAP on OpenImages, test")):
        assert found.pop(caption) == [(line[0], [float(value) for value in line[number].split()]) for line in lines]
    assert found.pop("MaxBoxAcc of other methods on CUB-200-2011, test") == [
        ("CSTN, ResNet-101", [76.0]), ("TS-CAM, DeiT-S", [83.8]), ("MEIL, VGG16", [73.8]), ("DANet, VGG16", [67.7]), ("DANet, Inception v3", [67.03]),
        ("SPOL, ResNet-50", [96.4])]
    times = found.pop("Milliseconds for an image of 224x224 px and 200 classes")
    for (name, values), line in zip(times, RUNTIME.splitlines(), strict=True):
        printed = line.partition(" | ")[2].split()
        assert name == line.partition(" | ")[0]
        assert values == pytest.approx([float(value) * {"ms": 1, "s": 1000}[unit] for value, unit in zip(printed[::2], printed[1::2])])
    assert found.pop("Sizes of the networks whose times these are") == [
        ("parameters of the classifier, millions", [19.6, 25.6, 23.9]), ("feature maps of 28x28", [1024, 1024, 2048]),
        ("parameters of F-CAM's decoder, millions", [23.1, 5.7, 9])]
    assert not found


def test_values_are_shown_as_printed():
    errors = next(table for table in PAPERS["CAM"].tables if table.number == 2)
    assert errors.title == "Table 2. Localisation error on the ILSVRC validation set" and errors.cell(43.0) == "43.00"
    others = next(table for table in PAPERS["F-CAM"].tables if table.caption.startswith("MaxBoxAcc of other"))
    assert [others.cell(row.values[0]) for row in others.rows[:2]] == ["76.0", "83.8"] and others.cell(67.03) == "67.03"
