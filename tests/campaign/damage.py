"""Damaged files: `action=verify` finds them, and `action=run` makes exactly these again.

A trial copies a small finished run, damages a few of its files, and compares the run with what it was. The first trials go through
every kind of file with every damage; later ones draw both.
"""

import io
import json
import os
import shutil
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from pipeline import Pipeline
from pipeline.order import BY_NAME
from tests.campaign.row import Row, Trial
from tests.conftest import SMOKE, interrupted
from wsss.errors import ConfigError, WsssError

# Every kind of artifact, of few and small images, with networks that learn little.
STEPS = ("train_cam", "make_cam", "make_lpcam", "eval_cam", "cam_to_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg", "train_seg",
         "infer_seg", "eval_seg", "make_ins_seg_labels", "eval_ins_seg")
SMALL = (*SMOKE, "data.image_size=48", "data.n_train=10", "data.n_val=4", "train_cam.epochs=6", "train_cam.batch_size=4",
         "train_cam.checkpoint_steps=4", "make_cam.scales=[1.0,0.5]", "make_lpcam.n_clusters=2", "train_irn.epochs=1", "train_irn.batch_size=4",
         "train_seg.epochs=1", "train_seg.batch_size=4", "train_seg.absent_classes=true", "train_seg.checkpoint_steps=1", "segmenter.width=8",
         *(f"{step}.crop_size=32" for step in STEPS if BY_NAME[step].KIND == "training"), f"steps=[{','.join(STEPS)}]", "log_level=error")
IMAGES = [step for step in STEPS if BY_NAME[step].KIND == "images"]
AT_ONCE = 8   # files that a trial damages
# written anew by every call, or with times
VOLATILE = ("run.log", "summary.json", "config.yaml", ".locks/")
FACTS = {"config.yaml", "run.json", "summary.json", "run.log", "claim.json"}   # of a run, beside the steps


def small(outputs: Path, *words: str) -> Pipeline:
    return Pipeline.compose(*SMALL, f"outputs={outputs}", *words)


def finished(trial: Trial) -> Path:
    """`outputs` with the finished run smoke, the same one in packs, and one that was interrupted in an "images" step and in a
    training. It is never changed."""
    def make(outputs: Path) -> None:
        small(outputs).run()
        for name, steps in (("packed", IMAGES), ("begun", ("make_lpcam", "train_seg"))):
            shutil.copytree(outputs / "smoke", outputs / name)
            for step in steps:
                shutil.rmtree(outputs / name / step)
        small(outputs, "name=packed", "artifacts.layout=packed").run()
        for flag, reports in (("make_lpcam_pass=true", 12), ("train_seg_pass=true", 2)):
            with interrupted(reports):
                small(outputs, "name=begun", flag).run()
        small(outputs, "name=begun", "action=status").status()
    return trial.made_once("damage", make)


def kind(path: Path) -> str:
    """The kind of a file of a run: its path, without the id of an image."""
    stem, folder = path.name.split(".")[0], path.parent
    step = folder.as_posix().split(".partial-")
    return f"{step[0]}{'.partial' * (len(step) > 1)}/{'ID' if stem.startswith(('train_0', 'val_0')) else stem}{''.join(path.suffixes)}"


def kinds(outputs: Path, run: str) -> dict[str, list[Path]]:
    """The files of a run by kind, relative to its folder."""
    found = defaultdict(list)
    for path in sorted((outputs / run).rglob("*")):
        relative = path.relative_to(outputs / run)
        if path.is_file() and relative.parent.name and relative.parts[0] != ".locks":
            found[kind(relative)].append(relative)
    return found


CLAIM = json.dumps({"owner": {"host": "elsewhere", "pid": 1, "started": 1, "job": None}, "since": "2026-01-01 00:00:00", "makes": [],
                    "reads": [], "now": None})   # of a run on another machine, which disturbs nothing


# --- damages: (path, other files of its kind, draws) -> False if it changed nothing

def write(path: Path, content: bytes) -> bool:
    if content == path.read_bytes():
        return False
    path.write_bytes(content)
    return True


def truncated(path: Path, others: Sequence[Path], draws: np.random.Generator) -> bool:
    content = path.read_bytes()
    return write(path, content[:draws.integers(0, len(content))] if content else content)


def zeroed(path: Path, others: Sequence[Path], draws: np.random.Generator) -> bool:
    """Zeros in a part of it, or everywhere, as a file system may leave it after a loss of power."""
    content, place = path.read_bytes(), _part(path, draws)
    first = place[0] if draws.integers(2) else int(draws.integers(*place))
    return write(path, content[:first] + bytes(place[1] - first) + content[place[1]:])


def flipped(path: Path, others: Sequence[Path], draws: np.random.Generator) -> bool:
    content = bytearray(path.read_bytes())
    content[draws.integers(*_part(path, draws))] ^= 1 << int(draws.integers(8))
    return write(path, bytes(content))


def swapped(path: Path, others: Sequence[Path], draws: np.random.Generator) -> bool:
    """With another image's; where there is one file only, with that of another step."""
    if path.suffix == ".tar":
        content = bytearray(path.read_bytes())
        (a, b), (c, d) = _part(path, draws), _part(path, draws)
        size = min(b - a, d - c)
        content[a:a + size], content[c:c + size] = content[c:c + size], content[a:a + size]
        return write(path, bytes(content))
    others = [other for other in others or sorted(path.parents[1].glob(f"*/{path.name}")) if other != path and other.is_file()]
    return write(path, others[draws.integers(len(others))].read_bytes()) if others else False


def folder(path: Path, others: Sequence[Path], draws: np.random.Generator) -> bool:
    path.unlink()
    path.mkdir()
    if draws.integers(2):
        (path / "of the user.txt").write_text("not ours")
    return True


def link_to_itself(path: Path, others: Sequence[Path], draws: np.random.Generator) -> bool:
    path.unlink()
    path.symlink_to(path.name)
    return True


def missing(path: Path, others: Sequence[Path], draws: np.random.Generator) -> bool:
    path.unlink()
    return True


def more_classes(path: Path, others: Sequence[Path], draws: np.random.Generator) -> bool:
    """A whole file, of more classes than the run has."""
    content, out = path.read_bytes(), io.BytesIO()
    if path.suffix == ".npy":
        array = np.load(io.BytesIO(content))
        np.save(out, np.concatenate([array, array[:1] if len(array) else np.ones((1, *array.shape[1:]), array.dtype)]))
    elif path.suffix == ".npz":
        with np.load(io.BytesIO(content)) as file:
            np.savez(out, **{name: np.concatenate([array, array[:1]]) if array.ndim else array for name, array in file.items()})
    elif path.suffix == ".png":
        with Image.open(io.BytesIO(content)) as image:
            mask = np.array(image)
            mask[0, 0] = 9 if mask[0, 0] != 9 else 10
            changed = Image.fromarray(mask, image.mode)
            changed.putpalette(image.getpalette() or [])
        changed.save(out, "PNG")
    elif path.suffix == ".safetensors":
        tensors = safetensors.torch.load(content)
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        n = 8   # classes of the data set
        return write(path, safetensors.torch.save({name: torch.cat([tensor, tensor[:1]]) if tensor.ndim and tensor.shape[0] in (n, n + 1)
                                                   else tensor for name, tensor in tensors.items()}, metadata))
    elif path.suffix == ".json":
        return write(path, json.dumps(_longer(json.loads(content)), indent=1, ensure_ascii=False).encode() + b"\n")
    elif path.suffix == ".jsonl" and b'"classes"' in content:
        lines = content.splitlines(keepends=True)
        number = int(draws.integers(len(lines)))
        lines[number] = lines[number].replace(b'"classes": [', b'"classes": [8, ' if b'"classes": []' not in lines[number] else b'"classes": [8')
        return write(path, b"".join(lines))
    else:
        return False
    return write(path, out.getvalue())


def _longer(value: object) -> object:
    """Every list of one number for each class, and one more."""
    if isinstance(value, dict):
        return {key: _longer(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_longer(each) for each in value] + ([_longer(value[-1])] if len(value) in (8, 9) else [])
    return value


def _part(path: Path, draws: np.random.Generator) -> tuple[int, int]:
    """What of a file counts, from and to: of a pack one of the files in it (what is between them is never read)."""
    if path.suffix != ".tar":
        return 0, path.stat().st_size
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.size]
    member = members[draws.integers(len(members))]
    return member.offset_data, member.offset_data + member.size


DAMAGES: tuple[Callable[[Path, Sequence[Path], np.random.Generator], bool], ...] = (
    truncated, zeroed, flipped, swapped, folder, link_to_itself, missing, more_classes)


# --- what must stay

def tree(run: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file of a run that does not change with each call; of a file in a pack its place, not the time."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.name == "index.jsonl" and path.is_file() and b'"pack"' in path.read_bytes():
            for line in map(json.loads, path.read_text().splitlines()):
                content = (path.parent / line["pack"]).read_bytes()
                for file, (size, _, begin) in line["files"].items():
                    found[f"{path.parent.name}/{file}"] = content[begin:begin + size], zlib.crc32(f"{line['pack']} {begin}".encode())
        if not name.startswith(VOLATILE) and not path.is_dir() and path.suffix != ".tar":
            found[name] = (os.readlink(path).encode() if path.is_symlink() else path.read_bytes(), path.lstat().st_mtime_ns)
    return found


def lasting(name: str, content: bytes) -> object:
    """What of a file does not depend on when it was made."""
    if name.endswith("index.jsonl") and b'"pack"' in content:
        return [{key: [*value] if key == "files" else value for key, value in line.items() if key not in ("pack", "crc")}
                for line in map(json.loads, content.splitlines())]
    if not name.endswith("manifest.json"):
        return content
    manifest = json.loads(content)
    if name.split("/")[0] in IMAGES:
        del manifest["files"]["index.jsonl"]   # compared by itself; of packs it has the places, too
    return {key: manifest[key] for key in ("step", "fingerprint", "identity", "settings", "sources", "files", "images", "result")}


def files_by_line(run: Path) -> dict[str, list[str]]:
    """file -> the files of the same image and step; of a pack those of all images in it."""
    found: dict[str, list[str]] = defaultdict(list)
    for step in IMAGES:
        for line in map(json.loads, (run / step / "index.jsonl").read_text().splitlines()):
            files = [f"{step}/{name}" for name in line["files"]]
            found |= dict.fromkeys(files, files)
            found[f"{step}/{line.get('pack')}"] += files
    return found


def drawn(trial: Trial, found: dict[str, list[Path]], damages: Sequence[Callable] = DAMAGES) -> list[tuple[Path, list[Path], Callable]]:
    """What a trial damages, and how: by its number each kind of file with each damage, then at random."""
    number = int(trial.folder.name.rpartition("-")[2])
    pairs = [(name, damage) for damage in damages for name in found]
    np.random.default_rng(0).shuffle(pairs)
    pairs = pairs[number * AT_ONCE:(number + 1) * AT_ONCE] or [
        (list(found)[trial.draws.integers(len(found))], damages[trial.draws.integers(len(damages))]) for _ in range(trial.draws.integers(1, AT_ONCE + 1))]
    chosen = {found[name][trial.draws.integers(len(found[name]))]: damage for name, damage in pairs}
    return [(path, [other for other in found[kind(path)] if other != path], damage) for path, damage in chosen.items()]


def copied_run(trial: Trial, run: str) -> Path:
    """A copy of a run, on the same data set."""
    outputs, source = trial.folder / "outputs", finished(trial)
    shutil.copytree(source / run, outputs / run, symlinks=True)
    (outputs / ".data").symlink_to(source / ".data")
    return outputs


def lost_with(run: Path, name: str, all_of: dict[str, tuple[bytes, int]], line_of: dict[str, list[str]]) -> set[str]:
    """What is made again if a file is damaged."""
    step, file = name.split("/", 1)
    if step not in IMAGES:
        return {f"{step}/"}
    records = {f"{step}/manifest.json", f"{step}/index.jsonl"}
    if name.endswith(".tar"):
        content = (run / name).read_bytes() if (run / name).is_file() else b""
        return records.union(*(line_of[each] for each in line_of[name] if all_of[each][0] not in content))
    if file != "index.jsonl":
        return {name, *records, *line_of.get(name, ())}
    left = set((run / name).read_bytes().splitlines(keepends=True)) if (run / name).is_file() else set()
    lost = [json.loads(line) for line in all_of[name][0].splitlines(keepends=True) if line not in left]
    return records.union(*(line_of[f"{step}/{file}"] for line in lost for file in line["files"]))


def compare(before: dict[str, tuple[bytes, int]], run: Path, again: set[str], may_lack: set[str]) -> None:
    """A run must have what it had, in files that were not touched unless they were to be made `again`."""
    after = tree(run)
    new = [name for name in after.keys() - before.keys() if ".damaged" not in name]
    lost = before.keys() - after.keys() - may_lack
    assert not new and not lost, f"new: {new}, lost: {lost}"
    for name in before.keys() & after.keys():
        (content, time), (now, later) = before[name], after[name]
        assert lasting(name, now) == lasting(name, content), f"{name} is not what it was"
        assert now == content and later == time or name.startswith(tuple(again)), f"{name} was made again"


def artifacts(trial: Trial, run: str) -> int:
    """Damage files of some steps; look at the run, verify it and run it."""
    outputs = copied_run(trial, run)
    place, before, line_of = outputs / run, tree(outputs / run), files_by_line(outputs / run)
    found = {name: files for name, files in kinds(outputs, run).items() if "/" in name and not name.endswith("manifest.json")
             and (run == "smoke" or "packs" in name or name.endswith("index.jsonl"))}
    damaged, again = [], set()
    for path, others, damage in drawn(trial, found):
        if damage(place / path, [place / other for other in others], trial.draws):
            damaged.append(path.as_posix())
            print(f"{path}: {damage.__name__}")   # shown if the trial fails
    for name in damaged:
        again |= lost_with(place, name, before, line_of)
    words = (f"name={run}", *["artifacts.layout=packed"] * (run == "packed"))
    with suppress(ConfigError):   # a training whose weights and state are gone needs replace=true
        small(outputs, *words).plan()
    small(outputs, *words).status()
    verified = small(outputs, *words).verify()
    broken = [entry for step in verified for entry in step.broken]
    for name in damaged:
        if (index := f"{name.split('/')[0]}/index.jsonl") in damaged and index != name:
            continue   # its line may be lost, so that the image is made again anyway
        pack = name.split("/", 1)[1] if "/packs/" in name else ""
        assert any(entry.startswith(str(place / name)) or pack and entry.startswith(str(place / name.split("/")[0])) and f"(in {pack})" in entry
                   for entry in broken), f"verify does not find {name}: {broken}, {[step.note for step in verified]}"
    for entry in broken:
        assert any(entry.startswith(str(place / name)) for name in again), f"verify finds {entry}"
    replace = any(step.needs_replace for step in verified)
    small(outputs, *words, *["replace=true"] * replace).run()
    compare(before, place, again, {name for name in damaged if name.endswith("state.safetensors")})
    assert {step.action for step in small(outputs, *words).plan()} == {"skip"}
    return len(damaged)


def interrupted_run(trial: Trial) -> int:
    """Damage files of interrupted steps. The run then ends as it would have, if need be at the second or third command."""
    outputs = copied_run(trial, "begun")
    place, wanted = outputs / "begun", tree(finished(trial) / "smoke")
    found = {name: files for name, files in kinds(outputs, "begun").items() if ".partial/" in name}
    damaged = []
    for path, others, damage in drawn(trial, found, [each for each in DAMAGES if each is not swapped]):
        if damage(place / path, [place / other for other in others], trial.draws):
            damaged.append(path.as_posix())
            print(f"{path}: {damage.__name__}")
    for look in ("plan", "status", "verify"):
        getattr(small(outputs, "name=begun"), look)()
    for _ in range(len(damaged) + 1):   # a command may end with the name of a damaged file, which it has renamed
        try:
            small(outputs, "name=begun").run()
            break
        except WsssError as error:
            assert "the same command" in str(error) and any(Path(name).name in str(error) for name in damaged), error
    else:
        raise AssertionError(f"still not repaired: {damaged}")
    if broken := [entry for step in small(outputs, "name=begun").verify() for entry in step.broken]:
        print(broken)
        small(outputs, "name=begun").run()
    compare(wanted, place, {f"{step}/" for step in STEPS}, set())
    return len(damaged)


def records(trial: Trial) -> int:
    """Damage one file about the run. Nothing may be lost, and after the file is restored all is as it was."""
    outputs = copied_run(trial, "smoke")
    place, claim = outputs / "smoke", Path(".locks/claim.json")
    manifests = {str(path): [path] for path in sorted(path.relative_to(place) for path in place.glob("*/manifest.json"))}
    found = manifests | {"run.json": [Path("run.json")], "config.yaml": [Path("config.yaml")], "claim.json": [claim]}
    (place / claim).parent.mkdir(exist_ok=True)
    (place / claim).write_text(CLAIM)
    number = int(trial.folder.name.rpartition("-")[2])
    names, draws = [(name, damage) for damage in DAMAGES for name in found], trial.draws
    np.random.default_rng(0).shuffle(names)
    name, damage = names[number % len(names)]
    path = found[name][0]
    original, before = (place / path).read_bytes(), tree(place)
    print(f"{path}: {damage.__name__}")
    if not damage(place / path, [place / each for each in sum(manifests.values(), []) if each != path] if name in manifests else [], draws):
        return 0
    ends = {}
    for action in ("plan", "status", "verify", "run", "recorded"):
        pipeline = small(outputs)
        try:
            ends[action] = pipeline.recorded(place) if action == "recorded" else getattr(pipeline, action)()
        except WsssError as error:
            assert str(place / path) in str(error), f"{action} does not name {path}: {error}"
            ends[action] = None
    if name in manifests:
        assert any(str(place / path) in step.why for step in ends["status"]) or ends["plan"], f"status does not name {path}"
        assert any(str(place / path) in step.note for step in ends["verify"]) or ends["plan"], f"verify does not name {path}"
        assert ends["run"] is None or _same(original, place / path), "the run was not refused"
    elif name != "claim.json":
        assert {step.action for step in ends["plan"]} == {"skip"} and ends["run"], f"{path} stops a run that is finished"
    after = tree(place)
    for each in before.keys() - {path.as_posix()}:
        assert after[each] == before[each], f"{each} changed"
    shutil.rmtree(place / path) if (place / path).is_dir() else (place / path).unlink(missing_ok=True)
    (place / path).write_bytes(original)
    assert {step.action for step in small(outputs).plan()} == {"skip"}
    return 1


def _same(original: bytes, path: Path) -> bool:
    """Whether a damaged file says the same, such as 1E-5 for 1e-5."""
    try:
        return json.loads(path.read_bytes()) == json.loads(original)
    except (OSError, ValueError):
        return False


def inputs(trial: Trial) -> int:
    """Damage a file of the user: it is named, or counts as changed; after it is restored nothing is to do and nothing is lost."""
    outputs = copied_run(trial, "smoke")
    place, before = outputs / "smoke", tree(outputs / "smoke")
    source = (outputs / ".data").resolve()
    (outputs / ".data").unlink()
    shutil.copytree(source, outputs / ".data")
    found = defaultdict(list)
    for path in sorted(path.relative_to(outputs) for path in (outputs / ".data").rglob("*") if path.is_file()):
        found[f"{path.parent.name}/{path.suffix}" if path.parent.name in ("images", "masks") else path.name].append(path)
    number = int(trial.folder.name.rpartition("-")[2])
    names = [(name, damage) for damage in DAMAGES for name in found]
    np.random.default_rng(0).shuffle(names)
    name, damage = names[number % len(names)]
    path = found[name][trial.draws.integers(len(found[name]))]
    original, times = (outputs / path).read_bytes(), (outputs / path).stat()
    print(f"{path}: {damage.__name__}")
    if not damage(outputs / path, [outputs / other for other in found[name]], trial.draws):
        return 0
    for action in ("plan", "status", "verify", "run"):
        try:
            getattr(small(outputs), action)()
        except WsssError as error:
            assert any(each in str(error) for each in (path.name, path.stem, "would be replaced")), f"{action} does not name {path}: {error}"
    shutil.rmtree(outputs / path) if (outputs / path).is_dir() else (outputs / path).unlink(missing_ok=True)
    (outputs / path).write_bytes(original)
    os.utime(outputs / path, ns=(times.st_atime_ns, times.st_mtime_ns))
    small(outputs).run()
    after = tree(place)
    assert {each: lasting(each, content) for each, (content, _) in before.items()} == {
        each: lasting(each, content) for each, (content, _) in after.items() if ".damaged" not in each}
    return 1


ROWS = (
    Row("damaged-files", "files of each kind of a finished run damaged in eight ways, found and made again",
        lambda trial: artifacts(trial, "smoke"), wanted=100, inputs="files"),
    Row("damaged-packs", "the same of a run in packs", lambda trial: artifacts(trial, "packed"), wanted=30, inputs="files"),
    Row("damaged-unfinished", "the same of interrupted steps: journals, states, work.json", interrupted_run, wanted=60, inputs="files"),
    Row("damaged-records", "manifests, run.json, config.yaml and claims: named, nothing is lost", records, wanted=150, inputs="files"),
    Row("damaged-inputs", "images, masks and lists of the user: named or changed, nothing is lost", inputs, wanted=60, inputs="files"),
)
