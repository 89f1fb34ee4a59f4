"""The architecture, checked: layers, no cycles, a public face that is complete and documented."""

import ast
import inspect
import re
import subprocess
import sys
import warnings
from graphlib import TopologicalSorter
from pathlib import Path

import deepinv
import pytest

import deepinv_jitter as dj

ROOT = Path(dj.__file__).parent
#: From the ground up; a module imports from its own room and from those before it.
ROOMS = [
    {"checks", "memory"},
    {"optim", "physics", "attacks"},
    {"models", "datasets"},
    {"training"},
    {"evaluation"},
    {"__init__"},
]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
    for path in ROOT.rglob("*.py")
}


def imported_modules(name, tree):
    """The modules of the package that a module imports, by their names below the root."""
    package = name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield whole if whole in MODULES else ".".join(base)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
            assert not any(name.startswith("deepinv_jitter") for name in names), "imports the root"


def test_imports_run_only_downwards():
    height = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}
    inner = {n for n in MODULES if not n.endswith("__init__")}
    assert set(height) == {n.split(".")[0] for n in MODULES}
    graph = {}
    for name in inner:
        graph[name] = set(imported_modules(name, MODULES[name]))
        room = name.split(".")[0]
        for other in graph[name]:
            assert other in inner, f"{name} imports a room as a whole, {other}"
            theirs = other.split(".")[0]
            assert theirs == room or height[theirs] < height[room], f"{name}: {other}"
    TopologicalSorter(graph).prepare()  # which raises CycleError


def test_no_litter():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), (
                name
            )
            assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), name
        assert ast.get_docstring(tree), f"{name} has no docstring"


def test_the_public_face_is_what_the_map_names():
    imported = {
        a.name for n in MODULES["__init__"].body if isinstance(n, ast.ImportFrom) for a in n.names
    }
    assert dj.__all__ == sorted(dj.__all__) and set(dj.__all__) == imported
    inner = {n.removesuffix(".__init__") for n in MODULES} - {"__init__"}
    rooms = {name.split(".")[0] for name in inner}
    assert set(re.findall(r"^- `(\w+)`", dj.__doc__, re.MULTILINE)) == rooms
    readme = (ROOT.parent / "README.md").read_text()
    table = readme[readme.index("## Map") : readme.index("The paper's tables, figures")]
    assert set(re.findall(r"\[(\w+)\]\(deepinv_jitter/", table)) == rooms


def test_the_api_page_names_the_public_face():
    page = (ROOT.parent / "docs" / "api.md").read_text()
    tables = re.findall(r":nosignatures:\n\n((?: +\w+\n)+)", page)
    assert sorted(" ".join(tables).split()) == dj.__all__


def documentation(thing):
    """The docstring, with those it refers to for the other parameters."""
    doc = inspect.getdoc(thing) or ""
    for name in re.findall(r"are those of\s+:class:`(?:\w+\.)*(\w+)`", doc):
        doc += documentation(getattr(dj, name, None) or getattr(deepinv, name))
    return doc


def hosts(thing):
    """The parameters which a trainer takes over from deepinv's."""
    inherits = inspect.isclass(thing) and issubclass(thing, deepinv.Trainer)
    return inspect.signature(deepinv.Trainer).parameters if inherits else ()


def test_public_things_are_documented_typed_and_have_an_example():
    for name in dj.__all__:
        thing = getattr(dj, name)
        doc = documentation(thing)
        call = thing.__init__ if inspect.isclass(thing) else thing
        for parameter in inspect.signature(call).parameters.values():
            if parameter.name in ("self", "args", "kwargs") or parameter.name in hosts(thing):
                continue
            assert parameter.annotation is not parameter.empty, f"{name}: {parameter} has no type"
            assert f" {parameter.name}:" in doc, f"{name}: {parameter} undocumented"
        wrapper = name in ("CheckpointedIterator", "ConditionedIterator")
        base = inspect.isabstract(thing)
        assert wrapper or base or name == "Risk" or ">>>" in doc, f"{name} has no example"


@pytest.mark.slow
def test_what_few_need_is_imported_where_it_is_needed():
    script = "import deepinv, sys; before = set(sys.modules); import deepinv_jitter; "
    script += "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"matplotlib", "nilearn", "segyio"} & set(done.stdout.split())


def test_the_version_is_the_same_wherever_it_is_written():
    citation = (ROOT.parent / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == dj.__version__
    citing = (ROOT.parent / "docs" / "citing.md").read_text()
    assert re.search(r"version = \{(.+)\}", citing)[1] == dj.__version__
    changelog = (ROOT.parent / "docs" / "changelog.md").read_text()
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == dj.__version__


def test_import_is_silent():
    import importlib

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(dj)
