"""Files are either whole or absent."""

import os

import pytest

from wsss.files import remove_temporary, replacing, write_bytes


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
