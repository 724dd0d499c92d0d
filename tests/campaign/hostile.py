"""Files that are made to do harm: to reach outside their folder, to run code, to fill the memory or the disk, to hang.

What is defended is in docs/reliability.md, and what is not.
"""

import csv
import io
import json
import os
import pickle
import re
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.campaign.fuzz import limits, quiet, tried
from tests.campaign.parsers import FILES, LINE, MANIFEST, PARSERS, encoded, images, npy, picture, saved, with_labels
from tests.campaign.row import Row, Trial, Unavailable
from wsss.errors import WsssError

OUTSIDE = ("../x", "a/../../x", "/tmp/x", "..", ".", "", "a//x", "./x", "a/./x", "..\\x", "C:\\x", "\\\\host\\x", "a/..", "x\0y", "\ud800")
MARKUP = ('<script>document.title="owned"</script>', '"><img src=x onerror=document.title="owned">', "</script><script>alert(1)</script>", "{{7*7}}", "'';!--\"<XSS>=&{()}", "javascript:alert(1)", "<b>bold</b>", "&lt;")
FORMULAS = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", "cat;=1+1", 'a","=1', "=HYPERLINK(\"http://x\")", "-cmd|' /C calc'!A0", "\n=1")


def refused(call: Callable[[], object]) -> WsssError:
    """The error of ours that a call raises."""
    try:
        call()
    except WsssError as error:
        return error
    raise AssertionError("it is not refused")


def unharmed(folder: Path, inside: Iterable[str]) -> None:
    """Nothing new is beside the folders `inside`."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(inside), list(folder.iterdir())


# Paths.

def archives(trial: Trial) -> int:
    """Members with paths that lead out, links and devices; in zip, tar and compressed tar."""
    from wsss.data.archives import unpack

    (trial.folder / "in").mkdir()
    (trial.folder / "in/target").mkdir()
    count = 0
    for name in (name for name in OUTSIDE if "\ud800" not in name):
        for form in ("zip", "tar", "gz"):
            path = trial.folder / "in/archive"
            if form == "zip":
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("good", "x")
                    archive.writestr(zipfile.ZipInfo(name) if name else "x/../y", "harm")
            else:
                with tarfile.open(path, "w:gz" if form == "gz" else "w") as tar:
                    info = tarfile.TarInfo(name.replace("\0", "..") or "x/../../y")
                    info.size = 4
                    tar.addfile(info, io.BytesIO(b"harm"))
            try:
                unpack(path, trial.folder / "in/target")
            except WsssError:
                pass
            unharmed(trial.folder, ["in"])
            unharmed(trial.folder / "in", ["archive", "target"])
            count += 1
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        with tarfile.open(trial.folder / "in/archive", "w") as tar:
            link, through = tarfile.TarInfo("link"), tarfile.TarInfo("link/x")
            link.type, link.linkname, through.size = kind, "../..", 4
            tar.addfile(link)
            tar.addfile(through, io.BytesIO(b"harm"))
        refused(lambda: unpack(trial.folder / "in/archive", trial.folder / "in/target"))
        unharmed(trial.folder, ["in"])
        count += 1
    return count


def names_in_runs(trial: Trial) -> int:
    """Paths in manifests, journals, packs, lists and tables that lead out of their folder."""
    from pipeline.runfolder.folder import RunFolder
    from steps.runtime.journal import journal_lines
    from wsss.data.ids import Names, check_id

    run = RunFolder(trial.folder / "run")
    step = run.result("make_cam")
    step.mkdir(parents=True)
    names = Names(FILES)
    for name in OUTSIDE:
        (step / "manifest.json").write_text(json.dumps({**MANIFEST, "files": {name: [1, 1]}}))
        if "\\" not in name:   # a letter of a name as others
            refused(lambda: run.manifest("make_cam"))
        for line in ({**LINE, "files": {name: [1, 1]}}, {**LINE, "id": name}, {**LINE, "pack": name, "files": {"a": [1, 1, 1]}}, {**LINE, "pack": f"packs/{name}.tar", "files": {"a": [1, 1, 1]}}):
            (step / "index.jsonl").write_text(json.dumps(line) + "\n")
            for found in journal_lines(step):
                written = [step / file for file in (found["id"], *found["files"], found.get("pack", "x"))]
                assert all(step in Path(os.path.normpath(path)).parents for path in written), line
        if name not in ("a//x", "./x", "a/./x", "\\\\host\\x"):
            assert names.find(name) is None
        refused(partial(check_id, name))
    return 6 * len(OUTSIDE)


def links(trial: Trial) -> int:
    """Links that lead out of a run, also one that is exchanged while it is read; links that go in a circle; pipes and devices."""
    from pipeline.runfolder.reuse import _link
    from steps.runtime.journal import Journal, merge_journals
    from wsss.data.folder import open_folder
    from wsss.files import refuse_links

    secret, donor = trial.folder / "secret", trial.folder / "donor"
    secret.write_text("secret")
    donor.mkdir()
    own, stop = donor / "own", threading.Event()
    own.write_text("own")

    def exchange() -> None:
        while not stop.is_set():
            for target in (secret, donor / "own"):
                os.symlink(target, donor / "new")
                os.replace(donor / "new", donor / "a")

    os.symlink(own, donor / "a")
    thread = threading.Thread(target=exchange)
    thread.start()
    taken = 0
    try:
        for _ in range(300):
            try:
                _link(donor, "a", trial.folder / "mine")
                taken += 1
                assert (trial.folder / "mine").read_text() == "own"
            except WsssError:
                pass
    finally:
        stop.set()
        thread.join()
    assert taken and secret.read_text() == "secret"

    step, precious = trial.folder / "step", trial.folder / "precious"
    (step / "journals").mkdir(parents=True)
    precious.mkdir()
    (precious / "mine.tar").write_text("mine, without a line end")
    os.symlink(precious, step / "packs")
    os.symlink(precious / "mine.tar", step / "journals/0-of-1.jsonl")
    refused(lambda: refuse_links(step))
    refused(lambda: Journal(step))
    merge_journals(step, ())
    assert (precious / "mine.tar").read_text() == "mine, without a line end"

    data = trial.folder / "data"
    data.mkdir()
    with_labels(data)
    for name in ("loop", "again"):
        os.symlink(data, data / f"images/{name}")
    os.symlink(data / "images", data / "images/self")
    assert len(open_folder(data).lists["all"]) == 3
    for name in ("labels.csv", "classes.txt", "images/a.png"):
        (data / name).unlink()
        for make in (lambda path: os.mkfifo(path), lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink(path, path)):
            make(data / name)
            if not ((data / name).is_symlink() and not (data / name).exists() and name != "images/a.png"):   # a broken link is no file
                tried(lambda _: refused(lambda: open_folder(data)), b"")
            (data / name).unlink()
        with_labels(data)
    return 300 + 12


# Code.

class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def no_code(trial: Trial) -> int:
    """Pickles that write a file, in the form of every file that could hold one, and YAML that calls a function."""
    canary = trial.folder / "canary"
    harm = [Canary(canary), {"a": Canary(canary)}, {Canary(canary): 1}]
    contents = [pickle.dumps(value, protocol) for value in harm for protocol in (0, 2, 4)]
    contents += [npy(np.array(value, object), allow_pickle=True) for value in harm] + [saved(value) for value in harm]
    contents += [saved(value, _use_new_zipfile_serialization=False) for value in harm]
    archive = io.BytesIO()
    np.savez(archive, a=np.array(harm, object), keys=np.array(harm, object))
    contents.append(archive.getvalue())
    shell = f"touch {canary}".encode()
    contents += [b"cos\nsystem\n(S'%s'\ntR." % shell, b"!!python/object/apply:os.system ['%s']" % shell, b"names: !!python/object/apply:os.system ['%s']" % shell,
                 b"? !!python/object/new:os.system ['%s']\n: 1\n" % shell, b"%%!PS-Adobe-3.0 EPSF-3.0\n%%%%BoundingBox: 0 0 8 6\n(%s) (w) file\n" % bytes(canary)]
    pickle.loads(contents[0])   # it does harm where it is read in the wrong way
    assert canary.exists()
    canary.unlink()
    count = 0
    for parser in trial.draws.choice(np.array(PARSERS, object), 6, replace=False):
        place = trial.folder / parser.name
        place.mkdir()
        read = parser.open(place)
        for content in contents:
            try:
                read(content)
            except WsssError:
                pass
            assert not canary.exists(), parser.name
            count += 1
    return count


# Memory, disk and time.

def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + b"".join(chunk(*each) for each in chunks)
            + chunk(b"IDAT", data or zlib.compress(bytes((width + 1) * height))) + chunk(b"IEND", b""))


@cache
def bombs() -> list[tuple[str, bytes]]:
    """(name of a parser, content)."""
    zeros = zlib.compress(bytes(2**26), 9)   # 64 MiB in 65 kB
    texts = [png(8, 6, (b"zTXt", b"k\0\0" + zeros)), png(8, 6, (b"iTXt", b"k\0\1\0\0\0" + zeros)), png(8, 6, (b"iCCP", b"k\0\0" + zeros)), png(8, 6, *[(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20)))] * 200)]
    sizes = [png(60000, 60000, data=zeros), png(2**31 - 1, 1, data=zeros), png(1, 2**31 - 1, data=zeros), b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 10**6, 10**6, 1, 24, 0, 0, 0, 0, 0, 0)]
    found = [(name, content) for name in ("image", "folder_image", "folder_mask", "folder_objects", "map_png", "proposals_png", "label", "corrections") for content in (*texts, *sizes)]
    lines = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(12)).encode()
    found += [(name, lines + b"\nnames: *a11\n") for name in ("yaml_classes", "map_names", "config")]
    found += [("voc_xml", b'<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">' + b"".join(b'<!ENTITY a%d "%s">' % (i, b"&a%s;" % (str(i - 1).encode() if i else b"") * 10) for i in range(10)) + b"]><annotation>&a9;</annotation>")]
    found += [("voc_xml", b"<annotation>" + b"<a>" * 10**6)]
    found += [(parser.name, b"[" * 10**6) for parser in PARSERS if "json" in parser.form or parser.form == "yaml"]
    found += [(parser.name, b'{"a":' * 10**5) for parser in PARSERS if "json" in parser.form]
    found += [("coco_json", json.dumps({"images": [{"id": 1, "file_name": "a.png", "height": 10**9, "width": 10**9}], "categories": [{"id": 1, "name": "cat"}], "annotations": [
        {"image_id": 1, "category_id": 1, "segmentation": {"size": [10**9, 10**9], "counts": [10**18]}}]}).encode()),
        ("proposals_json", json.dumps([{"segmentation": {"size": [10**5, 10**5], "counts": [10**10]}}]).encode()), ("rle", json.dumps({"size": [10**5, 10**5], "counts": [10**10]}).encode()),
        ("brush", struct.pack(">I", 2**32 - 1) + bytes(9)), ("labelme_json", json.dumps({"imagePath": "a.png", "imageHeight": 2**19, "imageWidth": 2**19, "shapes": [
            {"label": "cat", "shape_type": "polygon", "points": [[0, 0], [5, 0], [5, 5]]}]}).encode()),
        ("colours", b"a" + b"," * 200_000 + b"\n"), ("colours", b"a " + b"9" * 10**6), ("table", b"name,classes\na,\"" + b"x" * 10**6), ("table", b"name" + b",c" * 500_000 + b"\n"),
        ("yolo", b"0 " + b"0.5 " * 500_000), ("list", b"a\n" * 3_000_000), ("words", b"a=" + b"[" * 400)]
    header = npy(np.zeros((2, 2), np.float32))
    huge = header.replace(b"(2, 2), }", b"(99999, 99999), }").replace(b" " * 8 + b"\n", b"\n")
    huge = huge[:8] + struct.pack("<H", len(huge) - 10 - 16) + huge[10:]
    found += [(name, huge) for name in ("array", "map_npy", "map_pickle", "official_maps")]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("a", "keys", "center"):
            file.writestr(f"{name}.npy", huge)
    found += [(name, archive.getvalue()) for name in ("arrays", "map_npz", "prototypes_npz", "weights_pth", "official_prototypes")]
    found += [(name, npy(np.array({}, object), allow_pickle=True)[:128] + code) for name in ("map_pickle", "official_maps") for code in (
        b"\x80\x04Nr\xff\xff\xff\x7f.", b"\x80\x04\x8e" + b"\xff\xff\xff\xff\0\0\0\0.", b"\x80\x04\x95" + b"\xff\xff\xff\xff\0\0\0\0N.", b"\x80\x04\x96" + b"\xff\xff\xff\xff\0\0\0\0.",
        b"\x80\x04)\x94" + b"h\x00h\x00\x86\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(1, 60)) + b"}h\x3cNs.")]
    return found


def bounded(trial: Trial) -> int:
    """Images, texts, archives and numbers that promise or unfold to more than fits."""
    found = [bombs()[number] for number in trial.draws.choice(len(bombs()), 12, replace=False)]
    with quiet(), limits():
        for number, (name, content) in enumerate(found):
            parser = next(parser for parser in PARSERS if parser.name == name)
            (place := trial.folder / str(number)).mkdir()
            try:
                tried(parser.open(place), content)
            except AssertionError as error:
                raise AssertionError(f"{name}, {content[:60]!r}: {error}") from error
    return len(found) + _zip_bomb(trial.folder)


def _zip_bomb(folder: Path) -> int:
    from wsss.data.archives import unpack

    path = folder / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a", "w") as member:
        member.write(bytes(2**26))
    with patch("wsss.data.archives._ALWAYS", 2**25):   # as a gigabyte, in less time
        assert "made to fill the disk" in str(refused(lambda: unpack(path, folder / "target")))
    assert not (folder / "target").exists() or not any((folder / "target").iterdir())
    return 1


def huge_lists(trial: Trial) -> int:
    """A labels.csv of 1 GB, a class list of a million lines, or as many unknown names."""
    from wsss.data.folder import open_folder

    images(trial.folder)
    table = trial.folder / "labels.csv"
    table.write_text("name,classes\na,cat\nb,dog\nc,\n")
    number, few = 10**6, 200_000
    match trial.draws.integers(5):
        case 0:
            (trial.folder / "classes.txt").write_text("".join(f"c{i}\n" for i in range(number)))
        case 1:
            (trial.folder / "data.yaml").write_text("names:\n" + "".join(f"- c{i}\n" for i in range(number)))
        case 2:
            table.write_text("name,classes\n" + "".join(f"a,c{i}\n" for i in range(few)))
        case 3:
            table.write_text("name,classes\n" + "".join(f"x{i},cat\n" for i in range(few)))
        case 4:
            with open(table, "a") as file:
                file.truncate(2**30)   # the rest takes no room on the disk
    with quiet(), limits():
        tried(lambda _: refused(lambda: open_folder(trial.folder)), b"")
    return 1


# Names.

def names(trial: Trial) -> int:
    """Files with names that other programs trip over: each is refused, or an image of its own."""
    from wsss.data.folder import open_folder
    from wsss.text import safe_names

    odd = ["a\nb", "a\tb", "a" * 251, "A", "é", "e\u0301", "a b ", "..a", "-rf", "--help", "a%2Fb", "a;b", "a,b", 'a"b', "a'b", "$(touch x)", "`x`", "a\x7f", "a\u202eb", "CON", "a.png", "\udcff", "🜁" * 60, "=1+1", *[text.replace("/", "|") for text in MARKUP]]
    for number, name in enumerate(odd):
        folder = trial.folder / str(number)
        folder.mkdir()
        images(folder)
        (folder / f"images/{name}.png").write_bytes(picture())
        (folder / "labels.csv").write_text("name,classes\n" + "".join(f'"{each}",cat\n' for each in ("a", "b", "c")))
        try:
            dataset = open_folder(folder)
            assert len({os.path.normcase(image_id) for image_id in dataset.lists["all"]}) == len(dataset.lists["all"])
        except WsssError as error:
            assert "\n" not in str(error).replace("\n  - ", ""), error
    classes = [*MARKUP, *FORMULAS, "Straße", "STRASSE", "é", "e\u0301", "a/b", "a_b", "a" * 500, ".", "..", "", "\0"]
    safe = [name.casefold() for name in safe_names(classes)]
    assert len(set(safe)) == len(safe) and not any("/" in name or name in (".", "..") for name in safe)
    return len(odd) + len(classes)


def formulas(trial: Trial) -> int:
    """What is written as csv begins no cell with a formula, whatever separates the cells."""
    from wsss.text import csv_text

    text = csv_text([FORMULAS, [";".join(FORMULAS)], [f"x;{name}" for name in FORMULAS], [-1.5, "-1.5", "+1", 3]])
    for row in csv.reader(io.StringIO(text)):
        for whole in row:
            for cell in (whole, *whole.split(";")):
                assert re.fullmatch(r"[-+]?[0-9.]+", cell) or not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝")), cell
    assert text.splitlines()[-1] == "-1.5,-1.5,+1,3"
    return 3 * len(FORMULAS)


# The report.

def report(trial: Trial) -> int:
    """Class and image names with HTML, in a real browser: no script of theirs runs, and nothing is asked for."""
    from tests.browser import BROWSER, show

    if BROWSER is None:
        raise Unavailable("no browser: apt-get install chromium")
    from pipeline import Pipeline
    from tests.conftest import SMOKE

    data = trial.folder / "data"
    data.mkdir()
    (data / "images").mkdir()
    classes = [name.replace(";", ",") for name in MARKUP[:4]]
    rows, listed = [("name", "classes")], []
    for number in range(10):
        image_id = ("<img src=x onerror=alert(1)>", "a&b", "'\"><script>1<")[number] if number < 3 else f"i{number}"
        array = np.random.default_rng(number).integers(0, 255, (48, 48, 3), np.uint8)
        (data / f"images/{image_id.replace('/', '')}.png").write_bytes(encoded(array))
        rows.append((image_id, classes[number % len(classes)]))
        listed.append(image_id)
    with open(data / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    (data / "classes.txt").write_text("\n".join(classes) + "\n")
    words = [word for word in SMOKE if not word.startswith(("data.", "report."))]
    pipeline = Pipeline.compose(*words, "data=folder", f"data.root={data}", f"outputs={trial.folder / 'out'}", "train_cam.epochs=1", "to_step=make_cam", "report.write=true")
    pipeline.run()
    page = next((trial.folder / "out").rglob("report.html"))
    shown = show(page, trial.folder)
    assert "owned" not in (re.search(r"<title>(.*?)</title>", shown.html) or [""])[0] and "<title>owned" not in shown.html
    assert shown.asked == [] and not re.search(r"<(b|XSS)>", shown.html) and "49" not in re.findall(r"\{\{7\*7\}\}|>49<", shown.html)
    assert shown.console == [], shown.console
    return len(MARKUP)


ROWS = [
    Row("hostile_archives", "archives with paths, links and devices that lead out", archives, 20, inputs="archives"),
    Row("hostile_names_in_runs", "paths in manifests, journals and lists that lead out", names_in_runs, 20, inputs="files"),
    Row("hostile_links", "links that lead out, also exchanged while read; link circles, pipes, devices", links, 50, inputs="links"),
    Row("hostile_code", "pickles and YAML that run code, for every parser", no_code, 60, inputs="files"),
    Row("hostile_bombs", "images, texts, archives and numbers that unfold", bounded, 40, inputs="files"),
    Row("hostile_lists", "a labels.csv of 1 GB, class lists of a million lines", huge_lists, 25, inputs="files"),
    Row("hostile_names", "names of files and classes", names, 3, inputs="names"),
    Row("hostile_formulas", "formulas in csv files that are written", formulas, 3, inputs="cells"),
    Row("hostile_report", "names with HTML in the report, in a browser", report, 3, short=0, inputs="names"),
]
