"""Packs: a plain tar that is appended to, cut where a process died, and read by position."""

import io
import json
import os
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from steps.runtime.artifacts import Labels, encode_array, quarantine, read_array
from steps.runtime.journal import INDEX, JOURNALS, Journal, journal_lines, kept_in, merge_journals, unfinished
from steps.runtime.packs import Pack, free_name
from steps.runtime.store import Layout, Store, writer
from tests.conftest import contents
from wsss.data.dataset import Dataset
from wsss.data.images import encode_mask
from wsss.errors import ArtifactError, StorageError

IDS = tuple("abcdef")
DATA = Dataset(name="six", root=Path("nowhere"), classes=("cat",), lists={"train": IDS, "val": (), "all": IDS},
               labels=dict.fromkeys(IDS, (0,)), image_files=dict(zip(IDS, IDS)))


def make(folder, ids, layout=Layout.packed, shard=(0, 1), mark=b"", close=True):
    """What a step that is not killed does for `ids`."""
    journal = Journal(folder, shard)
    store = writer(layout, folder, journal.path)
    for image_id in ids:
        place = store.write({f"{image_id}.bin": mark + image_id.encode() * 700, f"more/{image_id}.bin": b""})
        journal.add(image_id, place, 0.5, source="s", classes=[0])
    if close:
        journal.close()
        store.close()


def read(folder, image_id):
    return Store(folder).file(image_id, f"{image_id}.bin").read_bytes()


@pytest.fixture
def undisturbed(tmp_path):
    folder = tmp_path / "undisturbed"
    make(folder, IDS)
    assert merge_journals(folder, IDS) == 6
    return contents(folder)


def test_any_tool_unpacks_it(tmp_path):
    make(tmp_path, [*IDS, "ö" * 120])
    with tarfile.open(tmp_path / "packs/0-of-1.tar") as tar:
        assert tar.getnames() == [name for i in [*IDS, "ö" * 120] for name in (f"{i}.bin", f"more/{i}.bin")]
        assert {(member.mtime, member.uid, member.mode) for member in tar} == {(0, 0, 0o644)}
        assert tar.extractfile("b.bin").read() == b"b" * 700
    assert read(tmp_path, "ö" * 120) == "ö".encode() * 120 * 700 and not unfinished(tmp_path, IDS, DATA, read_images=False)
    assert Store(tmp_path).file("c", "more/c.bin").read_bytes() == b""
    make(tmp_path / "files", "a", Layout.files)   # a line of it has the sums alone
    line = json.loads((tmp_path / "files" / JOURNALS / "0-of-1.jsonl").read_text())
    assert list(line) == ["id", "source", "classes", "seconds", "files", "crc"] and "pack" not in line
    assert line["files"] == {"a.bin": [700, zlib.crc32(b"a" * 700)], "more/a.bin": [0, 0]}


@pytest.mark.parametrize("torn", [b"", b"torn", b"\0" * 5000, "header"])
@pytest.mark.parametrize("line", ["", '{"id": "d", "sou'])
@pytest.mark.parametrize("done", [0, 1, 4, 6])
def test_a_killed_process_leaves_the_bytes_of_an_undisturbed_one(tmp_path, undisturbed, torn, line, done):
    """It had written some images, part of the next one, and part of its line."""
    folder = tmp_path / "killed"
    make(folder, IDS[:done], close=False)
    (folder / "packs").mkdir(exist_ok=True)
    with open(folder / "packs/0-of-1.tar", "ab") as pack:
        pack.write(tarfile.TarInfo("d.bin").tobuf()[:300] if torn == "header" else torn)
    with open(folder / JOURNALS / "0-of-1.jsonl", "a") as journal:
        journal.write(line)
    assert list(unfinished(folder, IDS, DATA, read_images=False)) == list(IDS[done:])
    make(folder, IDS[done:])
    merge_journals(folder, IDS)
    assert contents(folder) == undisturbed


def test_one_that_stopped_ends_its_tar_and_goes_on(tmp_path, undisturbed):
    for part in (IDS[:2], IDS[2:5], (), IDS[5:]):
        make(tmp_path / "stopped", part)
        if part:
            assert len(tarfile.open(tmp_path / "stopped/packs/0-of-1.tar").getnames()) == 2 * (IDS.index(part[-1]) + 1)
    merge_journals(tmp_path / "stopped", IDS)
    assert contents(tmp_path / "stopped") == undisturbed


def test_bytes_that_a_loss_of_power_took(tmp_path):
    """The journal has reached the disk, the pack not all: what it lacks is made again, behind nothing that was recorded."""
    make(tmp_path, IDS, close=False)
    os.truncate(tmp_path / "packs/0-of-1.tar", 5 * 1024)
    lost = list(unfinished(tmp_path, IDS, DATA, read_images=False))
    assert 0 < len(lost) < 6 and lost == list(IDS[-len(lost):])
    make(tmp_path, lost)
    merge_journals(tmp_path, IDS)
    assert not unfinished(tmp_path, IDS, DATA, read_images=False)
    assert [read(tmp_path, i) for i in IDS] == [i.encode() * 700 for i in IDS] and len(list(tmp_path.glob("packs/*"))) == 2


def test_zeros_in_place_of_bytes_are_not_believed(tmp_path):
    make(tmp_path, IDS)
    with open(tmp_path / "packs/0-of-1.tar", "r+b") as pack:
        pack.seek(512)
        pack.write(bytes(700))
    with pytest.raises(ArtifactError, match=r"a.bin \(in packs/0-of-1.tar\) is not what was written: .* Run its step again"):
        read(tmp_path, "a")
    assert read(tmp_path, "b") == b"b" * 700


def test_an_image_that_is_made_again_gets_new_bytes_in_a_new_pack(tmp_path):
    make(tmp_path, IDS)
    merge_journals(tmp_path, IDS)
    before = (tmp_path / "packs/0-of-1.tar").read_bytes()
    make(tmp_path, "c", mark=b"new")
    merge_journals(tmp_path, IDS)
    assert read(tmp_path, "c") == b"new" + b"c" * 700 and read(tmp_path, "d") == b"d" * 700
    assert (tmp_path / "packs/0-of-1.tar").read_bytes() == before
    assert tarfile.open(tmp_path / "packs/0-of-1-2.tar").getnames() == ["c.bin", "more/c.bin"]


def test_packs_without_an_image_go(tmp_path):
    make(tmp_path, "a", shard=(1, 2))
    merge_journals(tmp_path, IDS)
    (tmp_path / "packs/0-of-3.tar").write_bytes(b"of one that was killed before its first line")
    make(tmp_path, "a")
    merge_journals(tmp_path, IDS)
    assert sorted(path.name for path in tmp_path.glob("packs/*")) == ["0-of-1.tar"]
    make(tmp_path, "b")
    merge_journals(tmp_path, IDS)
    assert sorted(path.name for path in tmp_path.glob("packs/*")) == ["0-of-1-2.tar", "0-of-1.tar"]
    assert free_name("packs/0-of-1.tar", ("packs/0-of-1.tar", "packs/0-of-1-2.tar")) == "packs/0-of-1-3.tar"


def test_both_layouts_in_one_folder(tmp_path):
    make(tmp_path, "ab")
    make(tmp_path, "cd", Layout.files)
    make(tmp_path, "ef")
    assert not unfinished(tmp_path, IDS, DATA, read_images=False)
    merge_journals(tmp_path, IDS)
    assert [read(tmp_path, i) for i in IDS] == [i.encode() * 700 for i in IDS]
    assert sorted(path.name for path in tmp_path.rglob("*.bin")) == ["c.bin", "c.bin", "d.bin", "d.bin"]
    assert tarfile.open(tmp_path / "packs/0-of-1.tar").getnames()[::2] == ["a.bin", "b.bin", "e.bin", "f.bin"]


def test_shards_write_a_pack_each(tmp_path):
    for index in range(3):
        make(tmp_path, IDS[index::3], shard=(index, 3), close=index != 1)
    merge_journals(tmp_path, IDS)
    assert [len(tarfile.open(tmp_path / f"packs/{i}-of-3.tar").getnames()) for i in range(3)] == [4, 4, 4]
    assert [json.loads(line)["id"] for line in (tmp_path / INDEX).read_text().splitlines()] == list(IDS)
    ends = [(tmp_path / f"packs/{i}-of-3.tar").read_bytes()[-1024:] for i in range(3)]
    assert ends == [bytes(1024)] * 3


def test_a_pack_that_another_run_has_too_is_not_appended_to(tmp_path):
    make(tmp_path / "one", "abc")
    os.link(tmp_path / "one/packs/0-of-1.tar", tmp_path / "theirs.tar")
    before = (tmp_path / "theirs.tar").read_bytes()
    make(tmp_path / "one", "def")
    merge_journals(tmp_path / "one", IDS)
    assert (tmp_path / "theirs.tar").read_bytes() == before
    assert [read(tmp_path / "one", i) for i in IDS] == [i.encode() * 700 for i in IDS]
    # nor is a link emptied that a process left which was killed before its first line
    (tmp_path / "two/packs").mkdir(parents=True)
    os.link(tmp_path / "theirs.tar", tmp_path / "two/packs/0-of-1.tar")
    make(tmp_path / "two", "a")
    assert (tmp_path / "theirs.tar").read_bytes() == before


def test_a_damaged_member_is_moved_away_alone_and_labels_are_read_too(tmp_path):
    journal = Journal(tmp_path)
    store = writer(Layout.packed, tmp_path, journal.path)
    for image_id in "ab":
        place = store.write({f"{image_id}.npy": encode_array(np.full((1, 2), np.nan if image_id == "a" else 1.0))})
        journal.add(image_id, place, 0.5, source="s", classes=[0])
    file = Store(tmp_path).file("a", "a.npy")
    with pytest.raises(ArtifactError, match=r"a.npy \(in packs/0-of-1.tar\) holds numbers that are not finite. Run make_cam again"
                       ) as caught:
        read_array(file, "make_cam")
    assert quarantine(caught.value) == tmp_path / "packs/a.npy.damaged"
    assert (tmp_path / "packs/a.npy.damaged").read_bytes() == file.raw()
    assert unfinished(tmp_path, "ab", DATA, read_images=False) == {"a": "broken"}
    assert read_array(Store(tmp_path).file("b", "b.npy"), "make_cam").tolist() == [[1, 1]]
    journal.add("c", store.write({"c.png": encode_mask(np.ones((2, 3), np.uint8))}), 0, source="s", classes=[0], height=2, width=3)
    assert (Labels(tmp_path, 1)("c") == 1).all()
    with pytest.raises(ArtifactError, match=r"c.png \(in packs/0-of-1.tar\) holds a label of \(2, 3\), expected \(3, 3\)"):
        Labels(tmp_path, 1)("c", (3, 3))


def test_a_pack_that_is_gone(tmp_path):
    make(tmp_path, "ab")
    (tmp_path / "packs/0-of-1.tar").unlink()
    assert unfinished(tmp_path, "ab", DATA, read_images=False) == {"a": "broken", "b": "broken"}
    with pytest.raises(ArtifactError, match=r"a.png cannot be read .*No such file"):
        Labels(tmp_path, 1)("a", (2, 2))
    make(tmp_path, "ab")
    assert read(tmp_path, "a") == b"a" * 700


@pytest.mark.parametrize("damage", [
    {"pack": "packs/0-of-1.tar"}, {"pack": "p", "files": {"b.bin": [1, 2]}}, {"files": 3}, {"files": {"b.bin": 3}}, {"id": "../b"},
    {"files": {"../b.bin": [0, 0]}}, {"files": {"/b.bin": [0, 0]}}, {"files": {"more//b.bin": [0, 0]}}, {"files": {"": [0, 0]}},
    {"pack": "packs/../b.tar", "files": {"b.bin": [0, 0, 0]}}, "no JSON", "[]", '{"id"', "{} {}", "[" * 10000, "\0", ""])
def test_a_damaged_line_is_named_and_does_not_count(tmp_path, damage):
    make(tmp_path, "abc", Layout.files)
    path = tmp_path / JOURNALS / "0-of-1.jsonl"
    lines, problems = path.read_text().splitlines(), []
    lines[1] = damage if isinstance(damage, str) else json.dumps(json.loads(lines[1]) | damage)
    path.write_text("\n".join(lines) + "\n")
    assert unfinished(tmp_path, "abc", DATA, read_images=False, problems=problems) == {"b": "missing"}
    assert problems == [f"{path}, line 2, is not a journal line: the same command makes its image again"]
    make(tmp_path, "b")   # the damaged line is in the way of nothing
    assert set(kept_in(tmp_path)) >= {"a.bin", "c.bin"} and merge_journals(tmp_path, IDS) == 3


def test_a_line_that_names_another_file_as_its_pack_changes_nothing_there(tmp_path):
    (tmp_path / "x").write_bytes(b"mine" * 1000)
    make(tmp_path / "step", "ab")
    path = tmp_path / "step" / JOURNALS / "0-of-1.jsonl"
    with open(path, "a") as journal:
        journal.write(path.read_text().splitlines()[0].replace("packs/0-of-1.tar", "../x") + "\n")
    make(tmp_path / "step", "c")
    merge_journals(tmp_path / "step", IDS)
    assert (tmp_path / "x").read_bytes() == b"mine" * 1000 and read(tmp_path / "step", "c") == b"c" * 700


def test_a_full_disk(tmp_path, monkeypatch):
    pack = Pack(tmp_path, "packs/0-of-1.tar")
    pack.add("a", b"1")
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="0-of-1.tar cannot be written"):
        patch.setattr("steps.runtime.packs._write", lambda file, content: (file.write(content[:100]), os.write(10**6, b"")))
        pack.add("b", b"2")
    pack.close()
    assert tarfile.open(tmp_path / "packs/0-of-1.tar").getnames() == ["a"]


def test_many_packs_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("steps.runtime.packs.MOST_OPEN", 2)
    for index, image_id in enumerate(IDS):
        make(tmp_path, image_id, shard=(index, 6))
    before = len(os.listdir("/proc/self/fd"))
    store = Store(tmp_path)
    assert [store.file(i, f"{i}.bin").read_bytes() for i in IDS * 2] == [i.encode() * 700 for i in IDS * 2]
    assert len(os.listdir("/proc/self/fd")) == before + 2 + 2   # journals and packs
    with store.file("a", "a.bin").open() as file:
        assert isinstance(file, io.BytesIO)
    del store
    assert len(os.listdir("/proc/self/fd")) == before


def placed(path):
    """Something of the user in the place of a file."""
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "mine.txt").write_text("mine")


@pytest.mark.parametrize("layout", Layout)
def test_a_folder_or_a_link_to_itself_in_the_place_of_a_file(tmp_path, layout):
    """It is renamed, with what is in it, and the images are made again."""
    make(tmp_path, "abc", layout)
    merge_journals(tmp_path, IDS)
    places = ["packs/0-of-1.tar"] if layout is Layout.packed else ["a.bin", "more/b.bin"]
    for name in places:
        placed(tmp_path / name)
    (tmp_path / "journals").mkdir()
    (tmp_path / "journals/0-of-1.jsonl").symlink_to("0-of-1.jsonl")
    left = unfinished(tmp_path, "abc", DATA, read_images=False)
    assert left == dict.fromkeys("abc" if layout is Layout.packed else "ab", "broken")
    make(tmp_path, [*left], layout)
    assert merge_journals(tmp_path, IDS) == 3 and not unfinished(tmp_path, "abc", DATA, read_images=False)
    assert [read(tmp_path, image_id)[:1] for image_id in "abc"] == [b"a", b"b", b"c"]
    assert all((tmp_path / f"{name}.damaged/mine.txt").read_text() == "mine" for name in places)


def test_a_folder_in_the_place_of_the_index(tmp_path):
    make(tmp_path, "ab", Layout.files)
    merge_journals(tmp_path, IDS)
    placed(tmp_path / INDEX)
    assert unfinished(tmp_path, "ab", DATA, read_images=False) == {"a": "missing", "b": "missing"}


def test_every_changed_bit_of_a_line_is_found_and_costs_this_line_alone(tmp_path):
    make(tmp_path, "abc", Layout.files)
    merge_journals(tmp_path, IDS)
    whole = (tmp_path / INDEX).read_bytes()
    first, second = whole.index(b"\n") + 1, whole.index(b"\n", whole.index(b"\n") + 1)
    for bit in range(8 * first, 8 * second):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / INDEX).write_bytes(content)
        problems = []
        assert [line["id"] for line in journal_lines(tmp_path, problems)] == ["a", "c"], content[first:second]
        assert problems[0].startswith(f"{tmp_path / INDEX}, line 2, is not a journal line")


def test_a_line_of_an_older_version_has_no_checksum_and_counts(tmp_path):
    make(tmp_path, "ab", Layout.files)
    lines = [json.loads(line) for line in (tmp_path / "journals/0-of-1.jsonl").read_text().splitlines()]
    (tmp_path / "journals/0-of-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line.pop("crc")))
    assert merge_journals(tmp_path, IDS) == 2 and not unfinished(tmp_path, "ab", DATA, read_images=False)


def test_an_index_that_ends_within_a_line_is_damaged_and_a_journal_is_not(tmp_path):
    make(tmp_path, "ab", Layout.files)
    journal = tmp_path / "journals/0-of-1.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    problems = []
    assert [line["id"] for line in journal_lines(tmp_path, problems)] == ["a"] and not problems
    journal.rename(tmp_path / INDEX)
    assert [line["id"] for line in journal_lines(tmp_path, problems)] == ["a"] and len(problems) == 1
