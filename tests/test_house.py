"""The laws of the house that can be read off the source: arrows point down, the runner knows no step by name, nothing unsafe is
loaded, one list of packages."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

import wsss
from pipeline.order import STEPS, titles
from tests.conftest import SMOKE

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("wsss", "steps", "pipeline", "run_pipeline")   # from the bottom up
HEAVY = ("torch", "torchvision", "scipy", "matplotlib")   # each takes long to import
SOURCES = sorted(path for room in ROOMS for path in ([ROOT / f"{room}.py"] if room == "run_pipeline" else (ROOT / room).rglob("*.py")))


def imports(path: Path) -> set[str]:
    """The top-level names that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


def modules_imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules among `known` that a file imports anywhere but for type checking."""
    def nodes(node: ast.AST):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            for child in ast.iter_child_nodes(node):
                yield from nodes(child)
    found: set[str] = set()
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in inside}
    return found & known.keys()


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    above = set(ROOMS[ROOMS.index(room) + 1:]) | {"tests", "benchmarks"}
    assert not imports(path) & above


def test_no_imports_go_in_a_circle():
    known = {str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path for path in SOURCES}
    graph = {name: modules_imported(path, known) for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "benchmarks").glob("*.py"))], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    long = {node.name: length for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)
            and (length := node.end_lineno - node.lineno + 1) > 60}
    assert not long and text.count("\n") <= 300


def test_steps_shows_nothing_but_steps():
    assert {path.stem for path in (ROOT / "steps").glob("*.py")} == {*(row.file for row in STEPS), "step", "__init__"}


NAMES = {name for row in STEPS for name in (row.file, row.name, row.flag, *row.map_kinds)} | {*titles()}
NAMES -= {"imported"}   # also an ordinary word: of a network, of maps and labels from files of the official code
NAME = re.compile(rf"\b(?:{'|'.join(NAMES)})\b")
HOLE = "\0"   # an expression in a text that is put together
AFFIXES = {"startswith": "{}\0", "removeprefix": "{}\0", "endswith": "\0{}", "removesuffix": "\0{}"}


def template(node: ast.AST) -> str:
    """The text that an expression makes, with a hole for each part that is no constant."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(template, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left) + template(right)
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod()):
            return re.sub(r"%(?:\(\w+\))?[-+ #0-9.]*[a-z]", HOLE, text)
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
            return re.sub(r"\{.*?\}", HOLE, text)
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="join"),
                      args=[ast.List(elts=parts) | ast.Tuple(elts=parts)]):
            return text.join(map(template, parts))
        case ast.Call(func=ast.Attribute(attr=method), args=[ast.Constant(value=str(text))]) if method in AFFIXES:
            return AFFIXES[method].format(text)
    return HOLE


def assembled(text: str) -> set[str]:
    """The names that a template can become in one of its words, of which at least three letters are constant."""
    words = [word for word in re.findall(rf"[\w{HOLE}]+", text) if sum(map(str.isalpha, word)) >= 3]
    patterns = [re.sub(f"{HOLE}+", ".+", word) for word in words]
    return {name for name in NAMES if any(re.fullmatch(pattern, name) for pattern in patterns)}


def named_in(code: str, imports: bool = True) -> set[tuple[int, str]]:
    """(line, name) of every name of a step, a flag or a kind of result in the strings and in what they can be put together to, and
    as variable, attribute, keyword or, with `imports`, module. Docstrings may name them."""
    nodes = list(ast.walk(ast.parse(code)))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    parts = {id(node.left) for node in nodes if isinstance(node, ast.BinOp)}
    found: set[tuple[int, str]] = set()
    for node in nodes:
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                names = set(NAME.findall(text))
            case ast.JoinedStr() | ast.BinOp() | ast.Call() if id(node) not in parts:
                names = assembled(template(node))
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                names = {name} & NAMES
            case ast.alias(name=name) | ast.ImportFrom(module=str(name)) if imports:
                names = {*name.split(".")} & NAMES
            case _:
                continue
        found |= {(node.lineno, name) for name in names}
    return found


@pytest.mark.parametrize(("code", "names"), [
    ("a = 'make_cam'", {"make_cam"}), ("a = {'make_cam': 1}", {"make_cam"}), ("raise E(f'{a}: run make_cam first')", {"make_cam"}),
    ("a = 'make_sem_seg_pass=true'", {"make_sem_seg_pass"}), ("a = 'make_lpcam_fg_only'", {"make_lpcam_fg_only"}),
    ("config.make_cam.scales", {"make_cam"}), ("dict(make_cam=1)", {"make_cam"}), ("from steps import make_cam", {"make_cam"}),
    ("import steps.make_cam", {"make_cam"}), ("from steps.make_cam import MAPS", {"make_cam"}),
    ("a = f'see eval_{x}_seg.split'", {"eval_sem_seg", "eval_ins_seg"}), ("a = 'eval_' + x + '_seg'", {"eval_sem_seg", "eval_ins_seg"}),
    ("a = 'eval_%s_seg' % x", {"eval_sem_seg", "eval_ins_seg"}), ("a = 'eval_{}_seg'.format(x)", {"eval_sem_seg", "eval_ins_seg"}),
    ("a = '_'.join(['eval', x, 'seg'])", {"eval_sem_seg", "eval_ins_seg"}), ("a.startswith('train_c')", {"train_cam", "train_cam_pass"}),
    ("a = 'eval' + '_cam'", {"eval_cam"}),
    ("'''make_cam'''", set()), ("class A:\n    b: int\n    '''As make_cam.'''", set()), ("a = 'make_cams'", set()),
    ("a = f'{x}_{y}: {z} images'", set()), ("a = f'{x} made {y}'", set()), ("a = 'make' + x.y", NAMES)])
def test_what_names_a_step_is_found(code, names):
    found = {name for _, name in named_in(code)}
    assert found == ({name for name in NAMES if name.startswith("make")} if names is NAMES else names)


@pytest.mark.parametrize("path", [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "pipeline" and path.name != "order.py"],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_the_runner_knows_no_step_and_no_kind_of_result_by_name(path):
    found = sorted(named_in(path.read_text()))
    assert not found


@pytest.mark.parametrize("path", sorted(path for path in (ROOT / "pipeline").rglob("*") if path.suffix in (".j2", ".js", ".css")),
                         ids=lambda path: path.name)
def test_no_template_knows_a_step_by_name(path):
    assert not NAME.findall(path.read_text())


NOT_A_STEP = {"steps/runtime/datasets.py": {"train_amn", "train_cam", "train_irn", "train_psa", "train_recam", "train_seg", "train_seg_gt"}}   # the folder shapes-seed0-train200-val50


@pytest.mark.parametrize("path", sorted((ROOT / "steps").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_step_knows_roles_and_no_step_by_name(path):
    """Not even its own: two rows may have the same module."""
    found = sorted(named_in(path.read_text(), imports=False))
    assert not [(line, name) for line, name in found
                if name.removesuffix("_pass") not in NOT_A_STEP.get(str(path.relative_to(ROOT)), set())]


@pytest.mark.parametrize("path", sorted((ROOT / "steps").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_step_imports_another(path):
    known = {f"steps.{row.file}": path for row in STEPS}
    assert not modules_imported(path, known)


def test_the_science_knows_no_configuration():
    for path in (ROOT / "wsss").rglob("*.py"):
        assert not imports(path) & {"hydra", "omegaconf"}, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe_is_loaded(path):
    for call in calls(path):
        name = ast.unparse(call.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options.get("allow_pickle") != "True", f"{path}:{call.lineno}"
        if name == "torch.load" or name.endswith("load_state_dict_from_url"):
            assert options.get("weights_only") == "True", f"{path}:{call.lineno}"
        assert not name.startswith("pickle."), f"{path}:{call.lineno}"
        assert not name.endswith(("gather_object", "_object_list")), f"{path}:{call.lineno}: torch.distributed pickles these"


@pytest.fixture(scope="module")
def imported(smoke_outputs):
    """`imported(*words)`: the top-level names of all that `run_pipeline.py` with these words imports."""
    def call(*words: str) -> set[str]:
        code = ("import atexit, runpy, sys; sys.argv = ['run_pipeline.py', *sys.argv[1:]]\n"
                "atexit.register(lambda: print('IMPORTED', *sys.modules))\n"
                f"runpy.run_path({str(ROOT / 'run_pipeline.py')!r}, run_name='__main__')")
        settings = () if "--help" in words else (*SMOKE, f"outputs={smoke_outputs}", "device=cpu")
        result = subprocess.run([sys.executable, "-c", code, *settings, *words], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return {name.split(".")[0] for name in result.stdout.split("IMPORTED")[1].split()}
    return call


@pytest.mark.parametrize("words", [["action=plan"], ["action=status"], ["--cfg", "job"], ["--help"], ["--help", "action=plan"]],
                         ids=" ".join)
def test_what_only_looks_waits_for_nothing_heavy(words, imported):
    assert not imported(*words) & set(HEAVY)


@pytest.mark.parametrize("code", [
    "import wsss, wsss.data, pipeline, pipeline.commandline, pipeline.multirun",
    "from pipeline.config import compose, typed; "
    "[typed(compose([word, 'data=voc12', 'data.root=x'])).backbone.digest() for word in ('recipe=official', 'recipe=clean')]"])
def test_nothing_heavy_is_imported_with_the_pipeline_or_for_a_fingerprint(code):
    code += f"; import sys; print(set({HEAVY}) & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


def test_no_public_function_has_the_name_of_a_module():
    """For `from wsss import NAME` would be the module once that has been imported."""
    assert not set(wsss.__all__) & {path.stem for path in (ROOT / "wsss").glob("*.py")}
    assert all(getattr(wsss, name) for name in wsss.__all__)


def test_no_step_names_a_data_set():
    for path in (ROOT / "steps").rglob("*.py"):
        if path.name != "datasets.py":
            words = {node.value.lower() for node in ast.walk(ast.parse(path.read_text()))
                     if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 20}
            assert not words & {"shapes", "folder", "voc", "voc12", "coco", "coco14"}, path


def test_environment_yml_says_the_same_as_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    *conda, last = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert last["pip"] == project["dependencies"] + project["optional-dependencies"]["test"]
    assert f"python{project['requires-python']}" in conda


def test_no_two_steps_or_kinds_of_maps_have_one_name():
    names = [row.name for row in STEPS] + [kind for row in STEPS for kind in row.map_kinds if kind != row.name]
    assert len(names) == len(set(names)) and len({row.flag for row in STEPS}) == len(STEPS)
