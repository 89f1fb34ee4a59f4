"""The architecture, checked: layers, no cycles, a public face that is complete and documented."""

import ast
import inspect
import re
import warnings
from pathlib import Path

import deepinv

import deepinv_jitter as dj

ROOT = Path(dj.__file__).parent
LAYERS = [
    {"checks"},
    {"noise", "physics", "fidelities", "networks", "datasets", "shifts", "metrics"}
    | {"budgets", "files", "randomness", "ranks", "interruptions"},
    {"iterators", "priors", "attacks", "states", "reports", "engine"},
    {"models", "ensembles", "trainers", "risks", "evaluation", "selection"},
    {"baselines"},
    {"__init__"},
]
MODULES = {path.stem: ast.parse(path.read_text()) for path in ROOT.glob("*.py")}


def relative_imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield from [node.module] if node.module else [a.name for a in node.names]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = (
                [node.module]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
            )
            assert not any(
                name.startswith("deepinv_jitter") for name in names
            ), "imports the root"


def test_every_module_has_its_layer_and_imports_run_downwards():
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    assert set(layer) == set(MODULES)
    for name, tree in MODULES.items():
        for imported in relative_imports(tree):
            assert layer[imported] < layer[name], f"{name} imports {imported}"


def test_no_litter():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            assert not (
                isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            ), name
            assert not (
                isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
            ), name
        assert ast.get_docstring(tree), f"{name} has no docstring"


def test_the_public_face_is_what_the_map_names():
    imported = {
        a.name
        for n in MODULES["__init__"].body
        if isinstance(n, ast.ImportFrom)
        for a in n.names
    }
    assert dj.__all__ == sorted(dj.__all__) and set(dj.__all__) == imported
    modules = set(re.findall(r"deepinv_jitter\.(\w+)`", dj.__doc__))
    assert modules == set(MODULES) - {"__init__"}
    readme = (ROOT.parent / "README.md").read_text()
    assert set(re.findall(r"deepinv_jitter/(\w+)\.py", readme)) == modules


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
            if parameter.name in ("self", "args", "kwargs") or parameter.name in hosts(
                thing
            ):
                continue
            assert (
                parameter.annotation is not parameter.empty
            ), f"{name}: {parameter} has no type"
            assert f" {parameter.name}:" in doc, f"{name}: {parameter} undocumented"
        wrapper = name in ("CheckpointedIterator", "ConditionedIterator")
        base = inspect.isabstract(thing)
        result = name in ("ConvergenceBound", "Risk")
        assert wrapper or base or result or ">>>" in doc, f"{name} has no example"


def test_import_is_silent():
    import importlib

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(dj)
