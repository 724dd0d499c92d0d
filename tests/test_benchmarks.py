"""The benchmarks run, and their official forms compute what ours do, on tiny inputs: so that a comparison stays one of equals."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from benchmarks import (
    affinity_training,
    cams,
    downscale,
    edam_training,
    extractors,
    gpu,
    growth,
    harness,
    kmeans,
    lpcam,
    mctformer_training,
    packs,
    pictures,
    random_walk,
    run,
    setting,
    threshold_rules,
    training,
    upernet_training,
)
from benchmarks.evaluation import official_counts
from benchmarks.harness import Case, as_json, greatest_difference, in_child, measure, measure_alone, table
from tests.networks import backbone_method
from wsss.cams.gradcam import GradCAM
from wsss.data.images import read_image
from wsss.metrics.semantic import THRESHOLDS, ThresholdCounts
from wsss.refinement.affinity import affinity_losses

REQUIRED = {"name", "official_s", "ours_s", "ratio", "max_difference", "official_peak_mb", "ours_peak_mb"}


def agree(case: Case) -> float:
    return case.difference(case.official(), case.ours())


def test_a_row_holds_times_ratio_and_difference():
    case = Case("2", lambda: torch.ones(2), lambda: torch.full((2,), 1.5), greatest_difference, per=2)
    row = measure("tiny", lambda quick: case, quick=True, threads=1, repeats=2, peaks=False)
    assert REQUIRED <= asdict(row).keys() == set(harness.KEYS)
    assert row.ratio == row.official_s / row.ours_s and row.max_difference == 0.5 and row.once == ""
    assert json.loads(as_json([row])) == [asdict(row)]
    assert "| tiny " in table([row]) and "| 0.5 " in table([row])


def test_a_slow_form_runs_once(monkeypatch):
    monkeypatch.setattr(harness, "SLOW", 0.0)
    calls = []
    row = measure("slow", lambda quick: Case("1", lambda: calls.append(1)), True, 1, peaks=False)
    assert len(calls) == 1 and row.once == "ours" and row.official_s is None and row.ratio is None
    assert "(once)" in table([row])
    row = measure("disk", lambda quick: Case("1", lambda: None, disk=(50.0, 1.0)), True, 1)   # disk is compared as it is
    assert row.ratio == 50 and "50 MiB on disk" in table([row])


def test_on_a_gpu_a_form_is_waited_for_and_the_peak_is_the_gpus(monkeypatch):
    waited = []
    for name, value in {"is_initialized": lambda: True, "synchronize": lambda: waited.append(1), "reset_peak_memory_stats": lambda: None,
                        "memory_allocated": lambda: 2**20, "max_memory_allocated": lambda: 5 * 2**20}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    case = Case("1", lambda: torch.ones(2), lambda: torch.ones(2))
    row = measure("tiny", lambda quick: case, True, 1, repeats=2, peaks=False)
    assert (row.official_peak_mb, row.ours_peak_mb) == (4, 4) and len(waited) == 6


def test_peak_memory_is_that_of_the_form_itself():
    held = torch.ones(2**22)                                     # 16 MiB of inputs
    case = Case("1", lambda: float((held + held[0]).sum()))      # 16 MiB more
    assert 12 < measure_alone(lambda quick: case, "ours", True, 1).peak_mb < 40
    assert measure_alone(lambda quick: case, "official", True, 1) is None


def test_a_measurement_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.tempfile, "tempdir", str(tmp_path))
    assert in_child(lambda: [torch.ones(2), harness.tempfile.mkdtemp()][0].tolist()) == [1, 1]
    assert not list(tmp_path.iterdir())                          # it leaves nothing
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        in_child(lambda: 1 / 0)


@pytest.mark.parametrize("build", [training.cam_case, affinity_training.irn_case, edam_training.loop_case])
def test_the_trainings_compute_the_same(build, monkeypatch):
    monkeypatch.setattr(f"{build.__module__}.backbone", lambda: setting.backbone("resnet18"))
    monkeypatch.setattr(affinity_training, "Run", lambda dataset, **more: setting.Run(dataset, "resnet18", **more))
    assert agree(build(True)) < 1e-3


def test_the_training_of_mctformer_computes_the_same():
    case = mctformer_training.mctformer_case(True, network="test_vit", sizes=(2, 64))
    assert agree(case) < 1e-3 < float(case.ours())


def test_smps_upernet_computes_the_same():
    """Before its logits are upsampled with aligned corners."""
    pytest.importorskip("segmentation_models_pytorch")
    mine = upernet_training.METHOD.new(backbone_method(upernet_training.SWIN).new("frozen_batch"), setting.N_CLASSES + 1).eval()
    theirs, x = upernet_training.smp_upernet(mine, 64).eval(), training.samples(1, 64)[0]
    with torch.no_grad():
        torch.testing.assert_close(mine(x), theirs.segmentation_head[0](theirs.decoder(theirs.encoder(x))), rtol=1e-4, atol=1e-5)
    case = upernet_training.upernet_case(True, "bf16", (2, 64))
    assert agree(case) < 0.02 < float(case.ours())


def test_dense_walk():
    x, edge = (tensor.double() for tensor in random_walk.maps_and_edge(60, 72, 2))
    assert greatest_difference(random_walk.dense_walk(x, edge), random_walk.random_walk(x, edge)) < 1e-7


def test_official_losses():
    draw = torch.Generator().manual_seed(0)
    edge, displacement = torch.randn(2, 1, 16, 20, generator=draw), torch.randn(2, 2, 16, 20, generator=draw)
    labels = torch.tensor([0, 1, 4, 255])[torch.randint(4, (2, 16, 20), generator=draw)]
    index = affinity_training.PathIndex(5, (16, 20))
    official = affinity_training.official_losses(index, edge, displacement, index.labels(labels))
    ours = affinity_losses(edge, displacement, labels, radius=5)
    torch.testing.assert_close(official, [ours.pos_aff, ours.neg_aff, ours.dp_fg, ours.dp_bg], rtol=1e-5, atol=1e-6)


def test_official_evaluation():
    maps, truth = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(0)), pictures.drawn_mask(9, 11, [3, 7], 0)
    counts = ThresholdCounts(20)
    counts.update(maps, [3, 7], truth)
    ours = np.stack([counts.confusion(i).counts for i in range(len(THRESHOLDS))])
    np.testing.assert_array_equal(official_counts(maps.numpy(), [3, 7], truth), ours)


def test_official_maps_clusters_and_chain():
    assert agree(lpcam._case((64, 80), 2, prototypes=3, dimension=32)) < 1e-3      # through float16
    assert agree(kmeans._case(300, 4, 16)) == 0
    assert agree(cams.cam_case((64, 80), "resnet18")) < 2e-3             # through float16
    assert agree(cams.chain_case((64, 80), depth="resnet18")) < 0.02     # share of pixels
    assert agree(cams.gradient_case((64, 80), GradCAM(-1), harness.greatest_difference, "resnet18")) < 1e-5


@pytest.mark.parametrize("name", [name for name in extractors.METHODS if name not in extractors.TO_IMAGE])
def test_maps_without_the_forward_pass_are_the_same_and_torchcams(name, monkeypatch):
    """Of a method with masks only two are scored."""
    monkeypatch.setattr(extractors, "SIDE", 96)
    net = extractors.network("alexnet_star_gap")
    found = extractors.forms(net, name, channels=2)
    ours = found.ours()
    assert ours.shape == (1, 1, 96, 96) and greatest_difference(found.ours_after(), ours) <= 1e-5 * float(ours.abs().max())
    masks = {"occlusion": 6 * 6, "scorecam": 512, "sscam": 35 * 512, "iscam": 10 * 512}.get(name)
    assert found.factor == (masks / 2 if masks else 1) and (found.bare is None) == (masks is None)
    assert (found.theirs is None) == (extractors.METHODS[name] is None)
    if name in extractors.SAME:
        for theirs in (found.theirs(), found.theirs_after()):
            assert extractors._difference(theirs, ours) < 1e-4
    elif found.theirs:
        assert found.theirs().shape == ours.shape


def test_the_table_of_the_extractors(capsys, monkeypatch):
    monkeypatch.setattr(extractors, "SIDE", 96)
    monkeypatch.setattr(extractors, "LEAST", 0.0)
    monkeypatch.setattr(extractors, "NETWORKS", {"VGG16": "alexnet_star_gap"})
    rows = extractors.main(["--methods", "gradcam,guided_backprop,iscam", "--channels", "1", "--repeats", "1"])
    said = capsys.readouterr().out
    assert "VGG16: #PCL 4.3 M, #NFM 512, SFM 6x6, #PDEC -" in said and "| `gradcam` | " in said and "| `iscam` | ~" in said
    grad, guided, masked = rows
    assert grad.ratio > 0 and grad.ratio_after > 0 and grad.bare is None and grad.published_s == 0.0077
    assert guided.ours_s > 0 and guided.theirs_s is guided.ratio is guided.ours_after_s is None
    assert masked.extrapolated and masked.bare > 0 and masked.ours_after_s is None and masked.ours_s > 512 * 0.001


@pytest.mark.parametrize("with_masks", [False, True])
def test_drawn_data_set(tmp_path, with_masks):
    masks = []
    if with_masks:
        source = pictures.draw_dataset(tmp_path / "source", 2, sizes=[(40, 50)])
        masks = [source.mask_path(image_id) for image_id in source.lists["train"]]
    dataset = pictures.draw_dataset(tmp_path / "drawn", 3, sizes=[(32, 48), (40, 36)], masks=masks)
    for number, image_id in enumerate(dataset.lists["train"]):
        mask, image = dataset.mask(image_id), read_image(dataset.image_path(image_id))
        assert image.shape[:2] == mask.shape == ((40, 50) if with_masks else [(32, 48), (40, 36)][number % 2])
        assert set(np.unique(mask)) - {0, 255} == {index + 1 for index in dataset.labels[image_id]}


def test_every_benchmark_is_listed_once(capsys):
    run.main(["--list"])
    assert capsys.readouterr().out.split() == list(run.BENCHMARKS)
    assert run.ONE_THREAD <= run.BENCHMARKS.keys()
    with pytest.raises(SystemExit):
        run.main(["--only", "walk"])


def test_packs_spare_files():
    files, packed = (packs.measure(20, layout) for layout in packs.Layout)
    assert (files["files and folders"], packed["files and folders"]) == (21, 3)   # with the index, and the folder of the pack


def test_growth_measures_every_inference_step(monkeypatch):
    monkeypatch.setattr(growth, "WARM_UP", 1)
    found = growth.measured(2, threads=1)
    assert list(found) == ["make_cam", "make_lpcam", "eval_cam", "cam_to_ir_label", "make_sem_seg_labels"]
    assert all(0 < seconds < 60 and mib > 100 for seconds, mib in found.values())


GPU = ("--device", "cpu", "--quick")


@pytest.fixture
def parts(monkeypatch):
    """`parts` holds what the parts of `benchmarks.gpu` return; they are not run. The names of those that would run are in "ran"."""
    found = {"ran": []} | {name: {"seconds": 1.0, "nondeterministic": [], "result": {}} for name in gpu.PARTS}

    def run_part(name: str, options, left: float):
        found["ran"].append(name)
        return found[name]
    monkeypatch.setattr(gpu, "run_part", run_part)
    monkeypatch.setattr(gpu, "describe", lambda device: "a machine")
    return found


def ran(parts: dict) -> list[str]:
    names, parts["ran"] = parts["ran"], []
    return names


def test_the_gpu_script_continues_with_what_is_missing_or_failed(parts, tmp_path, capsys, monkeypatch):
    words = [*GPU, "--out", str(tmp_path)]
    parts["make_cam"] = {**parts["make_cam"], "error": "exit status 1: out of memory", "nondeterministic": ["put_"]}
    parts["voc_scale"] = None   # cut off
    assert gpu.main(words) == 1 and ran(parts) == list(gpu.PARTS)
    said = capsys.readouterr().out
    assert "FAILED make_cam: exit status 1: out of memory" in said and "Not measured: voc_scale (cut off after " in said
    assert "Without a deterministic form: put_ (make_cam)" in said
    parts["make_cam"] = parts["tests"]
    assert gpu.main(words) == gpu.SKIPPED and ran(parts) == ["make_cam", "voc_scale"]
    parts["voc_scale"] = parts["tests"]
    assert gpu.main(words) == 0 and ran(parts) == ["voc_scale"]
    assert gpu.main(words) == 0 and ran(parts) == []
    assert gpu.main([*words, "--again"]) == 0 and ran(parts) == list(gpu.PARTS)
    monkeypatch.setattr(gpu, "code_version", lambda: "other")
    assert gpu.main(words) == 0 and ran(parts) == list(gpu.PARTS)


def test_the_gpu_script_begins_nothing_for_which_no_time_is_left(parts, tmp_path, capsys):
    words = ["--device", "cpu", "--out", str(tmp_path), "--seconds"]
    assert gpu.main([*words, "0"]) == gpu.SKIPPED and ran(parts) == []
    assert capsys.readouterr().out.count("Not measured: ") == len(gpu.PARTS)
    assert gpu.main([*words, "50"]) == gpu.SKIPPED and ran(parts)[0] == "tests"   # the first always
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"].keys() == {"tests", "random_walk", "dense_crf", "make_cam", "train_cam",
                                                                               "train_irn", "train_seg"}
    assert gpu.main([*words, "350"]) == 0 and ran(parts) == ["parity", "extractors", "voc_scale"]


def test_a_part_that_takes_too_long_or_ends_with_an_error(tmp_path):
    options = gpu.arguments([*GPU, "--out", str(tmp_path)])
    assert gpu.run_part("tests", options, 0.01) is None
    if not torch.cuda.is_available():
        options.device = "cuda"
        assert gpu.run_part("random_walk", options, 60)["error"].startswith("exit status 1: ")
        with pytest.raises(SystemExit, match="--device cuda: torch cannot use it"):
            gpu.describe("cuda")


@pytest.mark.slow
def test_the_gpu_script_runs_without_a_gpu(tmp_path, capsys, monkeypatch):
    words = [*GPU, "--out", str(tmp_path)]
    assert gpu.main(words) == 0, capsys.readouterr().out
    said, found = capsys.readouterr().out, json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(found) == list(gpu.PARTS)
    assert found["tests"]["result"]["skipped"] > 20 and found["tests"]["result"]["passed"] == 0
    stages = found["parity"]["result"]["rows"]
    assert len(stages) == 12 and all(row["difference"] == 0 and row["same_bits"] in (None, True) for row in stages)
    rows = {row["name"]: row for name in found for row in found[name]["result"].get("rows", []) if "name" in row}
    assert rows.keys() == {"random_walk", "dense_crf", "make_cam", "make_cam_bf16", "make_cam_official", "train_cam", "train_cam_bf16",
                           "train_irn", "train_irn_bf16", "train_deeplab_bf16", "train_upernet_bf16", *extractors.cases()}
    assert all(row["ours_s"] > 0 and (row["max_difference"] or 0) < 0.01 for row in rows.values())
    assert [row["step"] for row in found["voc_scale"]["result"]["steps"]][0] == "train_cam"
    assert all(f"| `{name}` " in said for name in rows) and "| dense CRF |" in said and "| eval_sem_seg | 1 |" in said
    monkeypatch.setattr(gpu, "run_part", None)   # nothing is left to run
    assert gpu.main(words) == 0


def test_a_coarser_grid_scores_less(tmp_path, capsys):
    rows = downscale.main(["--images", "3", "--factors", "1,4,32", "data.n_train=3", "data.n_val=1", f"outputs={tmp_path}"])
    precisions, accuracies = ([row[column] for row in rows] for column in (1, 2))
    assert precisions[0] == pytest.approx(1) and accuracies[0] == 1 and precisions[0] > precisions[1] > precisions[2]
    assert "| 32 | " in capsys.readouterr().out


def test_rules_of_a_histogram_divide_two_modes():
    modes = np.exp(-(threshold_rules.VALUES - 0.2) ** 2 / 0.004) + 0.5 * np.exp(-(threshold_rules.VALUES - 0.7) ** 2 / 0.004)
    modes /= modes.sum()
    for rule in (threshold_rules.otsu, threshold_rules.isodata, threshold_rules.li, threshold_rules.yen, threshold_rules.entropy,
                 threshold_rules.triangle, threshold_rules.valley):
        assert 0.25 < rule(modes) < 0.65, rule.__name__
    between = [(modes[:n].sum() * modes[n:].sum() * ((modes * threshold_rules.VALUES)[:n].sum() / modes[:n].sum()
                - (modes * threshold_rules.VALUES)[n:].sum() / modes[n:].sum()) ** 2) for n in range(1, 100)]
    assert threshold_rules.otsu(modes) == (np.argmax(between) + 1) / 100
    assert threshold_rules.isodata(modes) == pytest.approx(0.45, abs=0.02)


def test_the_boundary_of_a_threshold_is_the_pairs_that_it_divides():
    values, image = np.float32([[0.1, 0.1, 0.55, 0.9]]), np.zeros((1, 4, 3), np.uint8)
    image[:, 2:] = 50
    step, pairs = threshold_rules.across_boundary(values, image)
    assert [pairs[number] for number in (5, 30, 70, 95)] == [0, 1, 1, 0]   # the value exceeds the threshold on one side
    assert [step[number] for number in (30, 70)] == [3, 0]                 # of a mean of a third of it


def test_the_rules_are_compared_on_a_run(smoke_outputs, capsys):
    threshold_rules.main([f"smoke={smoke_outputs / 'smoke'}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| rule | smoke, make_cam | ") and len(lines) == 15
    means = [float(line.split(" | ")[-2]) for line in lines[2:]]
    assert means == sorted(means) and sum(line.startswith("| maps and colours | ") for line in lines) == 1
    with pytest.raises(SystemExit):
        threshold_rules.main([])
