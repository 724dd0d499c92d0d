"""Weights files: fetched, local, our own; missing, damaged, or of another network."""

import hashlib
from http.client import IncompleteRead
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision

from tests.networks import load_pretrained, new_backbone, new_classifier
from wsss.errors import WeightsError
from wsss.networks.facts import PRETRAINED, file_sha256, read_metadata
from wsss.networks.weights import load_weights, pretrained_name, read_tensors, save_weights

NAME = "resnet18-f37072fd.pth"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No net and an empty cache; gives the cache folder."""

    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def pretrained():
    """A state dict as torchvision's files hold it, `fc` included."""
    return torchvision.models.resnet18(weights=None).state_dict()


def small_classifier(n_classes=3, seed=0):
    return new_classifier(new_backbone("resnet18", seed=seed), n_classes, seed=seed)


@pytest.mark.parametrize("depth", PRETRAINED)
def test_names_that_are_known_without_torchvision(depth):
    assert PRETRAINED[depth] == pretrained_name(depth)


def test_offline_error_says_what_to_get_and_where_to_put_it(offline):
    with pytest.raises(WeightsError) as error:
        load_pretrained(new_backbone("resnet18", "frozen_batch"))
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    for part in (url, NAME, "f37072fd", str(offline / NAME), "backbone.weights=FILE", "no route to host"):
        assert part in str(error.value)


def test_a_download_that_breaks_off_is_no_traceback(offline, monkeypatch):
    def broken(*_, **__):
        raise IncompleteRead(b"half")

    monkeypatch.setattr(torch.hub, "urlopen", broken)
    with pytest.raises(WeightsError, match="cannot download torchvision's resnet18 weights: IncompleteRead"):
        load_pretrained(new_backbone("resnet18", "frozen_batch"))


def test_a_damaged_file_in_the_cache_is_not_used(offline):
    offline.mkdir(parents=True)
    (offline / NAME).write_bytes(b"half a file")
    with pytest.raises(WeightsError, match="does not start with f37072fd"):
        load_pretrained(new_backbone("resnet18", "frozen_batch"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_local_file_with_torchvisions_names(tmp_path, pretrained, suffix):
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save(pretrained, path)
    else:
        save_weights(path, torchvision.models.resnet18(weights=None))
        pretrained = read_tensors(path)
    net = new_backbone("resnet18", "frozen_batch", seed=1)
    load_pretrained(net, path)
    assert all(torch.equal(value, pretrained[name]) for name, value in net.state_dict().items())
    # an old file, without the counters of batches
    torch.save({name: value for name, value in pretrained.items() if "num_batches" not in name}, tmp_path / "old.pth")
    load_pretrained(new_backbone("resnet18", "frozen_batch", seed=1), tmp_path / "old.pth")


def test_a_hash_in_the_name_is_checked(tmp_path, pretrained):
    torch.save(pretrained, tmp_path / "new.pth")
    digest = file_sha256(tmp_path / "new.pth")
    assert digest == hashlib.sha256((tmp_path / "new.pth").read_bytes()).hexdigest()
    right = (tmp_path / "new.pth").rename(tmp_path / f"resnet18-{digest[:8]}.pth")
    assert read_tensors(right).keys() == pretrained.keys()
    with pytest.raises(WeightsError, match="does not start with 00000000"):
        read_tensors(right.rename(tmp_path / "resnet18-00000000.pth"))


def test_weights_of_another_network_and_of_one_that_has_none_are_refused(tmp_path, pretrained):
    torch.save(pretrained, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match="use norm='frozen_batch' with them"):
        load_pretrained(new_backbone("resnet18", "group"), tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match="missing: layer1.2.conv1.weight"):
        load_pretrained(new_backbone("resnet34", "frozen_batch"), tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match="there are no ImageNet weights of backbone tiny: set backbone.pretrained=false"):
        load_pretrained(new_backbone("tiny", "frozen_batch"))


def test_own_weights_come_back_with_their_metadata(tmp_path):
    path, model = tmp_path / "weights.safetensors", small_classifier()
    save_weights(path, model, {"classes": ["cat", "chien"], "norm": "group"})
    other = small_classifier(seed=1)
    assert load_weights(path, other) == read_metadata(path) == {"classes": ["cat", "chien"], "norm": "group"}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_equal_bytes_at_every_writing(tmp_path):
    layer, contents = torch.nn.Linear(2, 2), set()
    for _ in range(20):  # safetensors orders several entries of its header differently from call to call
        save_weights(tmp_path / "w", layer, dict.fromkeys("abcdefgh", 1))
        contents.add((tmp_path / "w").read_bytes())
    assert len(contents) == 1


def test_wrong_number_of_classes_changes_nothing(tmp_path):
    save_weights(tmp_path / "w.safetensors", small_classifier(20))
    model = small_classifier(6, seed=1)
    before = model.backbone.conv1.weight.clone()
    message = r"classifier.weight is \(20, 512, 1, 1\), the network's \(6, 512, 1, 1\).*number of classes"
    with pytest.raises(WeightsError, match=message):
        load_weights(tmp_path / "w.safetensors", model)
    assert torch.equal(model.backbone.conv1.weight, before)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_damaged_file(tmp_path, suffix, kept):
    path = tmp_path / f"w{suffix}"
    save = save_weights if suffix == ".safetensors" else lambda path, layer: torch.save(layer.state_dict(), path)
    save(path, torch.nn.Linear(500, 10))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(WeightsError, match="w.(pth|safetensors) is damaged"):
        load_weights(path, torch.nn.Linear(500, 10))


def test_missing_file_and_file_without_tensors(tmp_path):
    with pytest.raises(WeightsError, match="no weights file .*nowhere.pth"):
        read_tensors(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="missing or damaged"):
        read_metadata(tmp_path / "nowhere.safetensors")
    torch.save({"epoch": 3}, tmp_path / "state.pth")
    with pytest.raises(WeightsError, match="no plain state dict"):
        read_tensors(tmp_path / "state.pth")


def test_metadata_of_others_and_files_that_cannot_be_read(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", {"json": "[1]"})
    with pytest.raises(WeightsError, match=r"w.safetensors is not a weights file of this project: its metadata is \[1\]"):
        read_metadata(tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="cannot read the weights .*: Is a directory; check its name and permissions"):
        file_sha256(tmp_path)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="holds a whole pickled model or other Python objects"):
        read_tensors(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    for content in (b"0", b"h\xff", b"J\0", b".", b"]r"):   # a damaged pickle raises IndexError, KeyError, struct.error
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(WeightsError, match="w.pth is damaged or not a weights file"):
            read_tensors(tmp_path / "w.pth")
