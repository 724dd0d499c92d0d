"""Downloading, with resumption, and unpacking of the official archives of a data set.

torchvision has the address and checksum of PASCAL VOC, but its downloader restarts after each interruption, and COCO's images
are 20 GB. The archives of each data set are listed in `voc_prepare` and `coco_prepare`.
"""

import fcntl
import hashlib
import http.client
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from wsss.data.archives import Progress, require_room, unpack
from wsss.data.findings import Finding
from wsss.errors import BusyError, DataError, StorageError
from wsss.files import storage

PART = ".part"              # suffix of an incomplete archive
TIMEOUT = 60.0              # seconds without data
TRIES, PAUSE = 3, 2.0       # tries in a row without data; seconds between two
_BLOCK, _MB = 2**20, 10**6


@dataclass(frozen=True)
class Archive:
    """An official archive and the files to unpack from it."""

    url: str
    md5: str | None = None          # None: none is published
    inside: str = ""                # folder in the archive
    only: tuple[str, ...] = ()      # files and folders to unpack from there; empty: all

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


class _Broken(DataError):
    """The download failed or is incomplete; received data is kept."""


def obtain(root: Path, into: Path, archives: Sequence[Archive], progress: Progress) -> list[Finding]:
    """Download `archives` to the folder `root`, unpack them below `into`, and return the lines of a report.

    An archive that is already in `root` is used; none is removed. A partial one, NAME.part, is resumed by HTTP Range, or
    restarted if the server does not support it. Checks: free space before the download, the length reported by the server,
    the MD5 if one is published, and the CRC-32 of each unpacked file of a zip.

    Raises DataError, listing the source and destination of every missing archive, if the download fails permanently; DataError
    for a damaged archive; StorageError without enough space; BusyError while another process downloads.
    """
    missing = [archive for archive in archives if not (root / archive.name).exists()]
    try:
        sizes = [_length(archive.url) for archive in missing]
        begun = sum(_size(_part(root, archive)) for archive in missing)
        require_room(root, max(0, 2 * sum(sizes) - begun), "fetch and unpack what is missing")   # images hardly compress
        for archive in archives:
            if archive in missing:
                _fetch(archive, root / archive.name, progress)
                missing = [other for other in missing if other is not archive]
            else:
                _check(archive, root / archive.name, f"{root / archive.name} is not the official archive. Remove it and run "
                       "the same command again to download it")
    except _Broken as error:
        places = "".join(f"\n  {archive.url} -> {root / archive.name}" for archive in missing)
        raise DataError(f"cannot download the missing archives ({error}). Run the same command again to continue; or copy these "
                        f"files here by other means and run it again:{places}") from error
    return [report_unpacked(root / archive.name, into, archive.inside, archive.only, progress) for archive in archives]


def report_unpacked(path: Path, into: Path, inside: str, only: Sequence[str], progress: Progress) -> Finding:
    """Unpack an archive (see `unpack`) and return a line of a report."""
    made, kept, differing = unpack(path, into, inside, only, progress)
    other = f"; {len(differing):,} of another size, such as {differing[0]}: remove them to unpack them again" if differing else ""
    return Finding(f"files unpacked of {path.name}", made, None,
                   f"into {into}; {kept:,} were there{other}. {path} is no longer needed")


def _length(url: str) -> int:
    """The size in bytes of a file on a server; 0 if the server does not report it."""
    with _asking(url), urlopen(Request(url, method="HEAD"), timeout=TIMEOUT) as answer:
        return int(answer.headers.get("Content-Length", 0))


def _fetch(archive: Archive, path: Path, progress: Progress) -> None:
    """Download an archive to `path`, complete and checked, or not at all."""
    part, failures = _part(path.parent, archive), 0
    with _locked(part) as file:
        while True:
            before = file.seek(0, os.SEEK_END)
            try:
                if _receive(archive, part, file, progress):
                    break
            except _Broken:
                came = file.seek(0, os.SEEK_END) > before
                failures = 0 if came else failures + 1
                if failures == TRIES:
                    raise
                time.sleep(PAUSE)
        file.flush()
        try:
            _check(archive, part, f"the download of {archive.url} is damaged and was removed: run the same command again")
        except DataError:
            part.unlink()
            raise
        with storage(path):
            os.fsync(file.fileno())
            os.replace(part, path)


def _receive(archive: Archive, part: Path, file: IO[bytes], progress: Progress) -> bool:
    """Append the missing bytes to `part`; return False if the download must restart from the beginning."""
    have = file.seek(0, os.SEEK_END)
    request = Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})
    with _asking(archive.url):
        try:
            answer = urlopen(request, timeout=TIMEOUT)
        except HTTPError as error:
            if error.code != 416:   # range not satisfiable: `part` is complete, or of another file
                raise
            whole = error.headers.get("Content-Range") == f"bytes */{have}"
            if not whole:
                file.truncate(0)
            return whole
        with answer:
            if have and answer.status == 200:   # a server without Range sends everything
                file.truncate(have := 0)
            elif have and _first_byte(answer) != have:
                file.truncate(0)
                return False
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else 0
            while block := answer.read(_BLOCK):
                with storage(part):
                    file.write(block)
                    file.flush()
                have += len(block)
                progress(archive.name, have // _MB, max(total, have) // _MB, "MB")
    if have < total:
        raise _Broken(f"the download of {archive.url} stopped after {have:,} of {total:,} bytes")
    return True


def _first_byte(answer: http.client.HTTPResponse) -> int | None:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Turn every network error of the block into a `_Broken`."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Broken(f"{url} cannot be reached: {getattr(error, 'reason', None) or error or type(error).__name__}") from error


def _check(archive: Archive, path: Path, otherwise: str) -> None:
    """Compare the MD5 of a file with the published one, if any."""
    if archive.md5 is None:
        return
    with storage(path), path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != archive.md5:
        raise DataError(f"{archive.name} has the MD5 {found}, expected {archive.md5}: {otherwise}")


@contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """Yield the partial file, opened for appending and locked for this process."""
    with storage(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("ab")
    with file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"{part} is being downloaded by another process: wait until it has finished") from error
        except OSError:   # a network file system without locks
            pass
        yield file


def _part(folder: Path, archive: Archive) -> Path:
    return folder / (archive.name + PART)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
