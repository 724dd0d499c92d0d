"""docs/notebook.ipynb runs from an empty folder; what a run shows and leaves behind in a program that is not ours."""

import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from pipeline import Pipeline
from pipeline.cluster.machine import prepared_process
from pipeline.runfolder.summary import Summary
from tests.conftest import ROOT
from wsss.errors import ConfigError


@pytest.mark.slow
def test_the_notebook_runs_and_shows_progress_and_tables(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs/notebook.ipynb", 4)
    told = nbformat.v4.new_code_cell("Pipeline.compose('experiment=smoke', 'name=again').run();")
    notebook.cells.append(told)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    tables = [output["data"]["text/html"] for cell in notebook.cells if cell.cell_type == "code"
              for output in cell.outputs if "text/html" in output.get("data", {})]
    assert len(tables) == 1 and "<th>mIoU</th>" in tables[0] and "<td>pseudo masks</td>" in tables[0]
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    shown = [output["data"]["text/plain"] for output in told.outputs if output.output_type == "display_data"]
    assert shown and not any(text.strip() for text in shown)   # the line of a step is empty when it is done
    assert "train_cam: done in" in "".join(output.text for output in told.outputs if output.output_type == "stream")


def test_a_summary_is_shown_as_tables_with_escaped_names():
    score = {"title": "<maps> & more", "measures": {"miou": "mIoU"}, "columns": {}, "miou": 0.5, "images": 3, "step": "eval_cam",
             "threshold": 0.25, "threshold_source": "best mIoU on val", "made_from": None}
    shown = Summary(scores={"make_cam": score}, unscored={})._repr_html_()
    assert "<td>&lt;maps&gt; &amp; more</td><td>50.0</td><td>0.25</td><td>3</td>" in shown and "best mIoU on val" in shown
    assert "no scores" in Summary(scores={}, unscored={})._repr_html_()


def test_the_hydra_session_of_the_caller_goes_on(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert Pipeline.compose("seed=3").config.seed == 3
        with pytest.raises(ConfigError):
            Pipeline.compose("sed=3")
        assert compose("mine").a == 1
    assert not GlobalHydra.instance().is_initialized()


def test_torch_is_as_before(monkeypatch):
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="failed"), prepared_process(before + 1, torch.device("cpu")):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("failed")
    assert torch.get_num_threads() == before


def test_a_terminal_without_notebook_imports_no_ipython():
    code = "import sys; from pipeline.console import Console; Console().progress('a', 1, 2, ''); sys.exit('IPython' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
