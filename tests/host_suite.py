"""Loads deepinv's own test files, so that its test functions can be run on our classes."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from unittest import mock

import deepinv
import pytest
import torch

HOST_TESTS = Path(deepinv.__file__).parent / "tests"


@functools.cache
def host_module(name: str) -> ModuleType:
    """
    The host's test file ``name``, for example ``"test_physics"``, as a module.

    Its test functions are plain callables that look up classes and helpers in the module's globals:
    replace those with ``monkeypatch.setattr`` and pass the fixtures as arguments.
    """
    # Host files import their neighbours dummy.py and conftest.py by bare names. The folder goes
    # last, so that our own files win everywhere else.
    if str(HOST_TESTS) not in sys.path:
        sys.path.append(str(HOST_TESTS))
    with _import_side_effects_undone():
        sys.modules["conftest"] = _load("conftest")
        return _load(name)


def _load(name: str) -> ModuleType:
    # under another name, because our test files and our conftest.py have the same ones
    spec = importlib.util.spec_from_file_location(f"host_{name}", HOST_TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _import_side_effects_undone():
    # Some host files set torch's determinism and TF32 switches when imported.
    ours = sys.modules.get("conftest")
    deterministic = torch.are_deterministic_algorithms_enabled()
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn_deterministic = torch.backends.cudnn.deterministic
    tf32 = [backend.allow_tf32 for backend in backends]
    try:
        with mock.patch.dict(os.environ):
            yield
    finally:
        sys.modules.pop("conftest", None)
        if ours is not None:
            sys.modules["conftest"] = ours
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.deterministic = cudnn_deterministic
        for backend, allowed in zip(backends, tf32, strict=True):
            backend.allow_tf32 = allowed


def host_test(module: ModuleType, name: str, **values: list) -> FunctionType:
    """
    A copy of the host's test ``name`` for pytest to collect, its parametrisations kept but for
    ``values``.
    """
    test = getattr(module, name)
    copied = FunctionType(
        test.__code__, test.__globals__, name, test.__defaults__, test.__closure__
    )
    copied.__kwdefaults__ = test.__kwdefaults__
    copied.pytestmark = []
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names, given = mark.args
            mark = pytest.mark.parametrize(names, values.get(names, given), **mark.kwargs).mark
        copied.pytestmark.append(mark)
    return copied
