"""Fetching official archives from a server of our own: cut connections, wrong files, no net; and what unpacking refuses."""

import fcntl
import hashlib
import io
import re
import shutil
import socket
import stat
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import contents
from tests.wsss import test_coco, test_voc
from wsss.data import archives, coco_prepare, download, open_voc, prepare_voc, voc_prepare
from wsss.data.archives import unpack
from wsss.data.coco_prepare import ARCHIVES, download_coco
from wsss.data.download import Archive, obtain
from wsss.data.voc_prepare import download_voc
from wsss.errors import BusyError, DataError, StorageError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")   # within pycocotools 2.0.11, with NumPy 2

CONTENT = {"photos/a.jpg": b"a" * 70_000, "photos/b.jpg": bytes(range(256)) * 900, "other/c.txt": b"not asked for"}


def packed(path, content=CONTENT):
    """`content` as a zip or tar, by the suffix of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


class Handler(BaseHTTPRequestHandler):
    """Serves the folder of its `Server`."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        self.answer(with_body=True)

    def answer(self, with_body):
        path, wanted, start = self.server.folder / self.path.strip("/"), self.headers.get("Range"), 0
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        if wanted and self.server.has_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start = start and max(0, start + self.server.shift)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            self.close_connection = True
            self.wfile.write(content[start:][:self.server.cuts.pop(0) if self.server.cuts else None])

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """`cuts`: after how many bytes each of the next answers breaks off; `asked`: the Range of each GET so far."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.cuts, self.asked, self.has_ranges, self.shift = folder, [], [], True, 0

    def archive(self, name, **more):
        return Archive(f"http://127.0.0.1:{self.server_port}/{name}", **more)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with Server(tmp_path / "served") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def quiet(*_):
    pass


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz"])
def test_an_archive_is_fetched_and_unpacked(server, tmp_path, name):
    served, told = packed(server.folder / name), []
    root, archive = tmp_path / "root", server.archive(name, md5=hashlib.md5(packed(server.folder / name).read_bytes()).hexdigest(),
                                                      only=("photos",))
    (finding,) = obtain(root, root / "data", [archive], lambda *line: told.append(line))
    assert contents(root / "data") == {name: data for name, data in CONTENT.items() if name.startswith("photos/")}
    assert (root / name).read_bytes() == served.read_bytes() and not (root / (name + ".part")).exists()
    assert (finding.found, finding.what) == (2, f"files unpacked of {name}") and "0 were there" in finding.note
    assert told[-1] == (name, 2, 2, "files unpacked") and told[0][0] == name and told[0][3] == "MB"
    (finding,) = obtain(root, root / "data", [archive], quiet)   # neither fetched nor unpacked again
    assert finding.found == 0 and "2 were there" in finding.note and server.asked == [None]


def test_a_cut_connection_is_continued_and_by_a_later_call_too(server, tmp_path):
    content = packed(server.folder / "set.zip").read_bytes()
    server.cuts = [1000, 50_000]
    obtain(tmp_path / "first", tmp_path / "first", [server.archive("set.zip")], quiet)
    assert server.asked == [None, "bytes=1000-", "bytes=51000-"] and (tmp_path / "first/set.zip").read_bytes() == content
    server.cuts = [1000, 0, 0, 0]
    with pytest.raises(DataError, match=r"cannot download the missing archives \(.*the download of .*/set.zip stopped after 1,000 of .* bytes\)"):
        obtain(tmp_path, tmp_path / "data", [server.archive("set.zip")], quiet)
    assert (tmp_path / "set.zip.part").read_bytes() == content[:1000] and not (tmp_path / "data").exists()
    server.asked.clear()
    obtain(tmp_path, tmp_path / "data", [server.archive("set.zip")], quiet)
    assert server.asked == ["bytes=1000-"] and (tmp_path / "set.zip").read_bytes() == content


@pytest.mark.parametrize("have, asked", [("whole", 1), ("more", 2)])
def test_a_partial_file_that_is_whole_already_or_too_long(server, tmp_path, have, asked):
    content = packed(server.folder / "set.zip").read_bytes()
    (tmp_path / "set.zip.part").write_bytes(content + b"more" * (have == "more"))
    obtain(tmp_path, tmp_path / "data", [server.archive("set.zip")], quiet)
    assert len(server.asked) == asked and (tmp_path / "set.zip").read_bytes() == content


@pytest.mark.parametrize("shift, asked", [(None, ["bytes=1000-"]), (-1, ["bytes=1000-", None])])
def test_a_server_without_range_or_with_another_one_sends_everything(server, tmp_path, shift, asked):
    content = packed(server.folder / "set.zip").read_bytes()
    (tmp_path / "set.zip.part").write_bytes(b"x" * 1000)
    server.has_ranges, server.shift = shift is not None, shift or 0
    obtain(tmp_path, tmp_path / "data", [server.archive("set.zip")], quiet)
    assert server.asked == asked and (tmp_path / "set.zip").read_bytes() == content


def test_a_wrong_checksum(server, tmp_path):
    packed(server.folder / "set.tar")
    archive = server.archive("set.tar", md5="0" * 32)
    with pytest.raises(DataError, match=r"set.tar has the MD5 [0-9a-f]{32}, expected 0{32}: .*the download of .*/set.tar is damaged and was removed"):
        obtain(tmp_path, tmp_path / "data", [archive], quiet)
    assert not [path for path in tmp_path.iterdir() if path != server.folder]
    packed(tmp_path / "set.tar")   # one that the user put there is left alone
    with pytest.raises(DataError, match=r"expected 0{32}: .*/set.tar is not the official archive. Remove it and run the same command again"):
        obtain(tmp_path, tmp_path / "data", [archive], quiet)
    assert (tmp_path / "set.tar").exists() and not (tmp_path / "data").exists()


def test_without_a_net_one_error_names_all_files_and_their_places(tmp_path):
    with socket.socket() as taken:   # a port that nobody listens on
        taken.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{taken.getsockname()[1]}"
        wanted = [Archive(f"{host}/zips/{name}") for name in ("one.zip", "two.zip", "three.zip")]
        packed(tmp_path / "two.zip")
        with pytest.raises(DataError) as error:
            obtain(tmp_path, tmp_path, wanted, quiet)
    assert str(error.value).startswith(f"cannot download the missing archives ({host}/zips/one.zip cannot be reached: [Errno 111] Connection refused).")
    assert str(error.value).splitlines()[1:] == [f"  {host}/zips/{name} -> {tmp_path / name}" for name in ("one.zip", "three.zip")]
    for name in ("one.zip", "three.zip"):
        packed(tmp_path / name, {f"photos/{name}.jpg": b"x"})
    obtain(tmp_path, tmp_path, wanted, quiet)
    assert {path.name for path in (tmp_path / "photos").iterdir()} == {"a.jpg", "b.jpg", "one.zip.jpg", "three.zip.jpg"}


def test_room_is_looked_for_before_the_first_byte(server, tmp_path, monkeypatch):
    packed(server.folder / "set.zip")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage._replace(free=400_000))
    with pytest.raises(StorageError, match=r"has 0.0 GB free; expected 0.0 GB to fetch and unpack what is missing: make room"):
        obtain(tmp_path, tmp_path, [server.archive("set.zip")], quiet)
    assert not server.asked
    packed(tmp_path / "large.zip", {"a.jpg": b"x" * 400_001})
    with pytest.raises(StorageError, match="to unpack large.zip"):
        unpack(tmp_path / "large.zip", tmp_path / "data")


def test_a_file_that_the_server_has_not_and_one_that_another_process_writes(server, tmp_path):
    with pytest.raises(DataError, match=r"/set.zip cannot be reached: Not Found\)"):
        obtain(tmp_path, tmp_path, [server.archive("set.zip")], quiet)
    packed(server.folder / "set.zip")
    with open(tmp_path / "set.zip.part", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match=r"set.zip.part is being downloaded by another process"):
            obtain(tmp_path, tmp_path, [server.archive("set.zip")], quiet)


@pytest.mark.parametrize("name", ["../up.jpg", "photos/../../up.jpg", "/etc/up.jpg", "C:/up.jpg", "photos\\..\\up.jpg"])
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_member_that_would_leave_its_folder(tmp_path, suffix, name):
    path = packed(tmp_path / "in" / f"bad{suffix}", CONTENT | {name: b"x"})
    with pytest.raises(DataError, match=r"archive .*bad\.\w+, of which nothing was unpacked: 1 problem\n  - '.*up.jpg' would be written outside"):
        unpack(path, tmp_path / "in" / "data")
    assert contents(tmp_path).keys() == {f"in/bad{suffix}"}


def test_links_and_devices_are_refused(tmp_path):
    packed(tmp_path / "bad.tar")
    with tarfile.open(tmp_path / "bad.tar", "a") as archive:
        for name, kind in {"photos/soft": tarfile.SYMTYPE, "photos/hard": tarfile.LNKTYPE, "photos/pipe": tarfile.FIFOTYPE}.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "photos/a.jpg"
            archive.addfile(info)
    with pytest.raises(DataError, match=r"3 problems\n  - 'photos/soft' is a link or a device(.|\n)*hard(.|\n)*pipe"):
        unpack(tmp_path / "bad.tar", tmp_path / "data")
    link = zipfile.ZipInfo("photos/soft")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(packed(tmp_path / "bad.zip"), "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"1 problem\n  - 'photos/soft' is a link"):
        unpack(tmp_path / "bad.zip", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_what_is_there_stays_and_the_rest_is_made(tmp_path):
    path, data = packed(tmp_path / "set.zip"), tmp_path / "data"

    def interrupted(*_):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        unpack(path, data, progress=interrupted)
    assert contents(data).keys() == {"photos/a.jpg"}
    (data / "photos/a.jpg").write_bytes(b"mine")
    done = unpack(path, data)
    assert (done.made, done.kept, done.differing) == (2, 1, ("photos/a.jpg",)) and (data / "photos/a.jpg").read_bytes() == b"mine"
    (finding,) = obtain(tmp_path, data, [Archive("http://nowhere.invalid/set.zip")], quiet)
    assert "1 of another size, such as photos/a.jpg: remove them to unpack them again" in finding.note
    with pytest.raises(DataError, match=r"set.zip holds nothing of train2014 below .*; expected the official archive"):
        unpack(path, data, only=["train2014"])


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_a_damaged_archive(tmp_path, suffix):
    path = packed(tmp_path / f"set{suffix}")
    whole = path.read_bytes()
    for content in (b"<html>log in</html>", whole[:len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"is damaged or not an archive \(.*remove it and run the same command again"):
            unpack(path, tmp_path / "data")
    packed(path, {"photos/a.jpg": b"x" * 1000})
    path.write_bytes(path.read_bytes().replace(b"xxx", b"yxx", 1) if suffix == ".zip" else whole[:-30])
    with pytest.raises(DataError, match="is damaged or not an archive"):
        unpack(path, tmp_path / "data")
    assert not contents(tmp_path / "data")


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_from_the_archive(server, tmp_path, below, monkeypatch):
    voc = test_voc.build(tmp_path / "made" / "VOCdevkit" / "VOC2012")
    (voc / "SegmentationClassAug").rename(voc / "SegmentationClass")
    content = contents(tmp_path / "made")
    packed(server.folder / "VOCtrainval_11-May-2012.tar", content)
    archive, root = server.archive("VOCtrainval_11-May-2012.tar", inside="VOCdevkit/VOC2012"), tmp_path / "new" / below
    download_voc(root, quiet, [archive])
    assert {name: data for name, data in contents(tmp_path / "new").items() if "tar" not in name} == content
    assert all(finding.ok for finding in prepare_voc(root) if "fit" in finding.what or "read" in finding.what)
    assert open_voc(root).lists["val"] == tuple(test_voc.VAL)
    (tmp_path / "new" / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2007_000032.jpg").unlink()
    (finding,) = download_voc(root, quiet, [archive])
    assert finding.found == 1 and len(server.asked) == 1
    monkeypatch.setattr(voc_prepare, "OFFICIAL", dict.fromkeys(voc_prepare.OFFICIAL, 6))
    assert download_voc(root, quiet, [archive])[0].ok   # all is there: the archive is not looked at


def test_voc_takes_the_augmented_masks_that_lie_there(server, tmp_path):
    voc = test_voc.build(tmp_path / "made")
    content = contents(voc)
    packed(server.folder / "voc.tar", {f"VOC2012/{name}": data for name, data in content.items() if "Aug" not in name})
    packed(tmp_path / "new" / "SegmentationClassAug.tar.gz", {name: data for name, data in content.items() if "Aug" in name})
    findings = download_voc(tmp_path / "new", quiet, [server.archive("voc.tar", inside="VOC2012")])
    assert [(finding.what, finding.found) for finding in findings] == [("files unpacked of SegmentationClassAug.tar.gz", 6),
                                                                       ("files unpacked of voc.tar", 15)]
    assert contents(tmp_path / "new" / "VOCdevkit" / "VOC2012") == content


def test_coco_from_its_three_archives(server, tmp_path, monkeypatch):
    made = test_coco.build(tmp_path / "made")
    content = contents(made)
    for name in ("train2014", "val2014", "annotations"):
        suffix = "_trainval2014" if name == "annotations" else ""
        packed(server.folder / f"{name}{suffix}.zip", {file: data for file, data in content.items() if file.startswith(name)}
               | {"annotations/captions_val2014.json": b"{}"})
    assert all(archive.url.startswith("https://") and len(archive.md5) == 32 for archive in ARCHIVES)
    ours, root = [server.archive(archive.name, only=archive.only) for archive in ARCHIVES], tmp_path / "coco"
    findings = download_coco(root, quiet, ours)
    assert [finding.found for finding in findings] == [6, 2, 2]
    assert {name: data for name, data in contents(root).items() if not name.endswith(".zip")} == content
    assert coco_prepare.prepare_coco(root)[-1].ok
    monkeypatch.setattr(coco_prepare, "COUNTS", {"train2014": 6, "val2014": 3})
    server.asked.clear()
    (root / "val2014.zip").unlink()
    assert [finding.what for finding in download_coco(root, quiet, ours)] == ["files unpacked of val2014.zip"] and len(server.asked) == 1
