"""deepinv's models and denoisers: each row of docs/models.md, run, and that none is missing."""

import importlib
import pkgutil
import re

import deepinv as dinv
import deepinv_tables as tables
import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", tables.MODELS)
def test_models(name):
    assert tables.model_row(name) in tables.PAGE.read_text().splitlines()


@pytest.mark.parametrize("name", tables.DENOISERS)
def test_denoisers(name):
    if tables.DENOISERS[name].is_missing:
        pytest.skip(f"needs {tables.DENOISERS[name].needs}")
    assert tables.denoiser_row(name) in tables.PAGE.read_text().splitlines()


def test_the_page_has_no_other_rows():
    page = tables.PAGE.read_text()
    for table, rows in (("models", tables.MODELS), ("denoisers", tables.DENOISERS)):
        part = page.split(f"<!-- {table} -->")[1].split(f"<!-- end of {table} -->")[0]
        assert len(part.strip().splitlines()) == 2 + len(rows)


def public_subclasses(base):
    """Those that deepinv exports, by name."""
    for module in pkgutil.walk_packages(dinv.__path__, "deepinv."):
        if "tests" not in module.name:
            importlib.import_module(module.name)
    found, todo = set(), [base]
    while todo:
        todo += (subclasses := todo.pop().__subclasses__())
        found |= set(subclasses)
    return {
        c.__name__
        for c in found
        if c.__module__.startswith("deepinv.")
        and ".tests" not in c.__module__
        and c.__qualname__ == c.__name__
    }


def words(names):
    return set(re.findall(r"\w+", " ".join(names)))


def test_none_is_missing():
    models = words(tables.MODELS) | tables.ONE_PASS | tables.NOT_HERE
    assert public_subclasses(dinv.models.Reconstructor) <= models
    denoisers = words(tables.DENOISERS) | tables.NOT_HERE
    assert public_subclasses(dinv.models.Denoiser) <= denoisers
    page = tables.PAGE.read_text()
    assert all(f"`{name}`" in page for name in tables.ONE_PASS | tables.NOT_HERE)
