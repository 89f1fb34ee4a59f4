r"""The paper's three problems, each composed of the library's pieces, with its presets."""

from __future__ import annotations

from mri import MRI
from points import Points
from problem import Problem
from seismic import Seismic

PROBLEMS: dict[str, type[Problem]] = {p.name: p for p in (Points, Seismic, MRI)}
