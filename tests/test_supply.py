"""Where code and data come from: checksums of downloads, licences, and no request by the report or the documents."""

import re
from importlib.metadata import PackageNotFoundError, distribution, requires

import pytest
import yaml

from tests.test_house import ROOT
from wsss.data.coco_prepare import ARCHIVES
from wsss.data.voc_prepare import _archives
from wsss.networks.facts import PRETRAINED

LICENCES = ROOT / "docs" / "licences.md"
# A licence as people write it -> as it is listed.
KNOWN = (("Apache", "Apache-2.0"), ("BSD", "BSD"), ("MIT", "MIT"), ("PSF|Python Software", "PSF"), ("MPL|Mozilla", "MPL-2.0"), ("HPND|Historical", "HPND"), ("ISC", "ISC"),
         ("LGPL", "LGPL"), ("Unlicense", "Unlicense"), ("CC0", "CC0"))


def installed() -> dict[str, str]:
    """The packages that this project needs without its extras, and theirs: name -> licence, as far as they are installed."""
    found, waiting = {}, [re.match(r"[\w.-]+", line)[0] for line in _dependencies()]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = licence_of(package)
        waiting += [re.match(r"[\w.-]+", line)[0] for line in requires(name) or () if "extra ==" not in line]
    return dict(sorted(found.items()))


def _dependencies() -> list[str]:
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def licence_of(package) -> str:
    """The licences that the metadata name."""
    meta = package.metadata
    texts = [meta.get("License-Expression") or "", *(line for line in meta.get_all("Classifier") or () if line.startswith("License")), (meta.get("License") or "")[:200],
             *((file.read_text() or "")[:300] for file in package.files or () if file.name == "LICENSE")]
    text = next((text for text in texts if any(re.search(pattern, text) for pattern, _ in KNOWN)), "")
    return ", ".join(dict.fromkeys(name for pattern, name in KNOWN if re.search(pattern, text))) or ("proprietary (NVIDIA)" if package.metadata["Name"].lower().startswith(("nvidia", "cuda")) else "?")


def listed() -> dict[str, str]:
    return dict(re.findall(r"^\| `([\w.-]+)` \| (.+?) \|$", LICENCES.read_text(), re.M))


def test_the_licence_of_everything_that_is_installed_is_listed():
    """Print the table with `python -m tests.test_supply`."""
    table = listed()
    gpu = ("nvidia", "cuda")   # which of these come depends on the build of torch
    assert {name: licence for name, licence in installed().items()
            if table.get(name, licence if name.startswith(gpu) else None) != licence} == {}
    assert "?" not in table.values() and not [name for name, licence in table.items() if re.fullmatch(r"A?GPL.*", licence)]


def test_every_download_has_a_checksum():
    assert all(re.fullmatch(r"[0-9a-f]{32}", archive.md5) and archive.url.startswith(("http://", "https://")) for archive in (*ARCHIVES, *_archives()))
    assert all(re.search(r"-[0-9a-f]{8}\.pth$", name) for name in PRETRAINED.values())
    for path in [*(ROOT / "wsss").rglob("*.py"), *(ROOT / "steps").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")]:
        text = path.read_text()
        if "load_state_dict_from_url" in text:
            assert "check_hash=True" in text, path
        if re.search(r"\b(urlopen|urlretrieve|hf_hub_download|snapshot_download)\(", text):
            assert path.name == "download.py", path


@pytest.mark.parametrize("sound", [True, False])
def test_a_download_of_hugging_face_is_compared_with_its_name(sound, tmp_path, monkeypatch):
    import hashlib

    from wsss.errors import WeightsError
    from wsss.networks.backbones import timm_weights

    path = tmp_path / (hashlib.sha256(b"weights").hexdigest() if sound else 64 * "0")
    path.write_bytes(b"weights")
    monkeypatch.setattr(timm_weights.huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(path))
    if sound:
        timm_weights._check_download("resnet18.a1_in1k")
    else:
        with pytest.raises(WeightsError, match="is damaged: its SHA-256 is not 0000"):
            timm_weights._check_download("resnet18.a1_in1k")


FETCHED = re.compile(r"""(?:\bsrc|\bhref|\bsrcset|\bposter|\baction|\bdata)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import|\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|EventSource|\bimport\(""")


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline/report/templates").iterdir()), ids=lambda path: path.name)
def test_the_report_asks_for_nothing(path):
    text = re.sub(r"<a [^>]*>", "", path.read_text())   # a link is followed by people
    assert not FETCHED.findall(text)
    if path.name == "page.html.j2":
        assert "default-src 'none'" in text


def test_the_documents_ask_for_nothing():
    class Loader(yaml.SafeLoader):
        pass
    Loader.add_multi_constructor("tag:yaml.org,2002:python", lambda loader, suffix, node: suffix)
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    assert settings["theme"]["font"] is False and not {"extra_css", "extra_javascript", "extra"} & settings.keys()
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(), flags=re.S)
        assert not re.search(r"!\[[^]]*\]\(\s*https?:|<(?:img|script|link|iframe)[^>]*https?:", text), path.name


if __name__ == "__main__":
    print("\n".join(f"| `{name}` | {licence} |" for name, licence in installed().items()))
