"""
Names of other projects that cross references may point to, for a build without the internet.

Sphinx asks the projects' own inventories first. Where these cannot be reached it takes these
files, made from the installed packages: a reference to a name that does not exist is still an
error.
"""

import builtins
import importlib
import inspect
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

#: Project -> its modules, the page of a name, and the pages of those that have none of their own.
PROJECTS = {
    "deepinv": (
        ["deepinv", "deepinv.datasets", "deepinv.loss", "deepinv.loss.metric"]
        + ["deepinv.loss.mri", "deepinv.models", "deepinv.optim", "deepinv.optim.prior"]
        + ["deepinv.optim.optim_iterators", "deepinv.physics", "deepinv.sampling"]
        + ["deepinv.physics.generator", "deepinv.utils"],
        "api/stubs/{name}.html",
        {},
    ),
    "torch": (
        ["torch", "torch.nn", "torch.nn.parallel", "torch.optim"]
        + ["torch.optim.lr_scheduler", "torch.nn.utils", "torch.random", "torch.func"]
        + ["torch.utils.data"],
        "generated/{name}.html",
        {
            "torch.Tensor": "tensors.html",
            "torch.device": "tensor_attributes.html",
            "torch.dtype": "tensor_attributes.html",
            "torch.autocast": "amp.html",
            "torch.random.manual_seed": "random.html",
            "torch.utils.data.DataLoader": "data.html",
            "torch.utils.data.Dataset": "data.html",
        },
    ),
    "python": (
        ["builtins", "collections.abc", "os", "pathlib", "pickle", "random"],
        "library/{module}.html",
        {},
    ),
    "matplotlib": (
        ["matplotlib.figure", "matplotlib.axes"],
        "api/figure_api.html",
        {"matplotlib.axes.Axes": "api/_as_gen/matplotlib.axes.Axes.html"},
    ),
}


def offline(project: str) -> str:
    """A file with the names of a project, in the format of sphinx's inventories."""
    modules, page, pages = PROJECTS[project]
    lines = []
    for module in map(importlib.import_module, modules):
        for name, thing in _public(module):
            own = name.removeprefix("builtins.")
            where = pages.get(own) or _page(page, own, module.__name__, thing)
            lines += [_line(own, thing, where)]
            if inspect.isclass(thing):
                lines += [
                    _line(f"{own}.{method}", function, where, role="method")
                    for method, function in inspect.getmembers(thing, callable)
                    if not method.startswith("_")
                ]
    header = [
        "# Sphinx inventory version 2",
        f"# Project: {project}",
        "# Version: ",
        "# The remainder of this file is compressed using zlib.",
    ]
    path = Path(tempfile.mkdtemp(), f"{project}.inv")
    path.write_bytes(
        "".join(f"{line}\n" for line in header).encode() + zlib.compress("\n".join(lines).encode())
    )
    return str(path)


def _public(module: ModuleType) -> Iterator[tuple[str, object]]:
    for name, thing in vars(module).items():
        if not name.startswith("_") and callable(thing):
            yield f"{module.__name__}.{name}", thing


def _page(page: str, name: str, module: str, thing: object) -> str:
    if module == builtins.__name__:
        error = inspect.isclass(thing) and issubclass(thing, BaseException)
        return f"library/{'exceptions' if error else 'stdtypes'}.html"
    return page.format(name=name, module=module)


def _line(name: str, thing: object, page: str, role: str | None = None) -> str:
    if role is None:
        role = "function"
        if inspect.isclass(thing):
            role = "exception" if issubclass(thing, BaseException) else "class"
    return f"{name} py:{role} 1 {page}#{name} -"
