"""Files are either whole or absent."""

import os

import pytest

from wsss.errors import StorageError
from wsss.files import file_sizes, remove_temporary, replacing, required, sync_folder, write_bytes


def test_a_failed_write_keeps_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    write_bytes(tmp_path / "a.png", b"old")
    names = []

    def fail(descriptor):
        names.extend(os.listdir(tmp_path))
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(tmp_path / "a.png", b"new")
    assert [name for name in names if name.endswith(".png")] == ["a.png"] and len(names) == 2
    assert os.listdir(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"old"


def test_what_a_killed_write_leaves_is_swept(tmp_path):
    (tmp_path / "sub").mkdir()
    write_bytes(tmp_path / "sub/b.npy", b"whole")
    with replacing(tmp_path / "sub/a.npy") as temporary:
        temporary.write_bytes(b"half")
        left = temporary.with_name(temporary.name.replace("a.npy", "killed.npy"))
        left.write_bytes(b"half")
    remove_temporary(tmp_path)
    assert sorted(os.listdir(tmp_path / "sub")) == ["a.npy", "b.npy"]


def test_a_link_to_itself_has_a_size_and_does_not_end_the_listing(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("gone")
    write_bytes(tmp_path / "sub/a.npy", b"whole")
    assert file_sizes(tmp_path) == {"loop": -1, "nowhere": -1, "sub/a.npy": 5}


def test_a_required_folder_that_is_gone_is_not_made_again(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(StorageError, match="run does not exist any more.* the same command continues"), required(run):
        write_bytes(run / "maps/a.npy", b"whole")
        run.rename(tmp_path / "away")
        with pytest.raises(StorageError, match="run does not exist any more"):
            write_bytes(run / "maps/b.npy", b"whole")
        assert os.listdir(tmp_path) == ["away"]
    write_bytes(run / "maps/b.npy", b"whole")   # later it is a folder as any other
    assert os.listdir(tmp_path / "away/maps") == ["a.npy"]


def test_names_are_flushed_in_every_folder(tmp_path, monkeypatch):
    flushed = []
    write_bytes(tmp_path / "maps/a.npy", b"whole")
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(os.readlink(f"/proc/self/fd/{number}")))
    sync_folder(tmp_path)
    assert flushed == [str(tmp_path), str(tmp_path / "maps")]
