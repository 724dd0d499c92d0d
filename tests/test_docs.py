"""What the documents say to type can be typed, and the site builds without a broken link."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import wsss
from pipeline.config import compose, typed
from pipeline.plan.selection import selected
from tests.check_summary import check
from tests.conftest import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"(<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)
PIPELINE = "python run_pipeline.py"


def blocks(page: Path) -> list[re.Match]:
    return list(BLOCK.finditer(page.read_text()))


def commands(text: str) -> list[list[str]]:
    """The words after `python run_pipeline.py` of every such command in a block, without comments and what follows in the shell."""
    lines = [line.strip().removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines()]
    return [shlex.split(line.split(PIPELINE, 1)[1].split("&&")[0], comments=True) for line in lines
            if line.startswith((PIPELINE, "pip install")) and PIPELINE in line]


COMMANDS = [pytest.param(words, id=f"{page.name}: {' '.join(words)}") for page in PAGES for block in blocks(page)
            for words in commands(block["text"]) if "..." not in words and not any(word.startswith(("-", "$")) for word in words)]
RUN = {page: [block["text"] for block in blocks(page) if commands(block["text"]) and not block["why"]] for page in PAGES}


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_is_one_that_the_pipeline_knows(words):
    words = [word.replace("$beta", "8") for word in words]   # of a loop in the shell
    assert selected(typed(compose(words)))


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES if RUN[page]])
def test_every_command_runs(page, tmp_path):
    """The blocks of a page, one after the other in an empty folder; one that cannot be run here is marked so, with the reason."""
    for text in RUN[page]:
        script = text.replace("python run_pipeline.py", f"{sys.executable} {ROOT / 'run_pipeline.py'}")
        result = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, timeout=900)
        assert result.returncode == 0, text + result.stdout[-2000:] + result.stderr[-2000:]
    for summary in tmp_path.glob("outputs/*/summary.json"):
        if "eval_sem_seg" in json.loads(summary.read_text())["steps"]:   # `check` is for runs of the eight steps
            assert check(summary.parent) == []


def test_contributing_names_what_is_there():
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:md|toml))`", (ROOT / "CONTRIBUTING.md").read_text()):
        examples = (("make_cam", ""), ("cam", "cam"))   # a step, a method and its family
        assert any((ROOT / name.replace("NAME", each).replace("FAMILY", family)).exists() for each, family in examples), name


def test_the_checks_are_the_same_everywhere():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for page in ("CONTRIBUTING.md", ".ci/run"):
        lines = [line.removeprefix("time ").split(" #")[0].strip() for line in (ROOT / page).read_text().splitlines()]
        assert {hook["entry"] for hook in hooks} == {"ruff check", "mypy"} <= set(lines), page


def test_the_python_page_lists_everything_public():
    page = (ROOT / "docs/api.md").read_text()
    assert sorted(re.findall(r"^::: wsss\.[\w.]+\.(\w+)$", page, re.MULTILINE)) == sorted(wsss.__all__)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mkdocs", path=str(Path(sys.executable).parent)) is None, reason='pip install -e ".[docs]"')
def test_the_site_builds_strictly(tmp_path):
    result = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"], cwd=ROOT,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "random_walk" in (tmp_path / "site/api/index.html").read_text()
