"""
The imports among the modules, room by room: ``python docs/draw_imports.py`` draws
``docs/_static/imports_after.png`` anew.

Within a room a module stands above all that it imports from there.
"""

import ast
import re
from pathlib import Path

import matplotlib.pyplot as plt

import deepinv_jitter

PACKAGE = Path(deepinv_jitter.__file__).parent
ROOMS = re.findall(r"^- `(\w+)`", deepinv_jitter.__doc__, re.MULTILINE)
WIDTH = 12  # at most so many modules stand side by side


def imported(path: Path) -> set[str]:
    """The modules of the package that a module imports, as ``room/module``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            names = [base / alias.name for alias in node.names] if base.is_dir() else [base]
            found |= {name_of(file) for n in names if (file := n.with_suffix(".py")).exists()}
    return found


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def draw(target: Path) -> None:
    paths = {name_of(p): p for p in PACKAGE.rglob("*.py") if p.stem != "__init__"}
    imports = {name: imported(path) for name, path in paths.items()}
    lines = {name: len(path.read_text().splitlines()) for name, path in paths.items()}
    rooms = {room: [n for n in sorted(paths) if n.split("/")[0] == room] for room in ROOMS}

    def depth(name: str) -> int:
        inside = [n for n in imports[name] if n.split("/")[0] == name.split("/")[0]]
        return 1 + max(map(depth, inside), default=-1)

    figure, ax = plt.subplots(figsize=(11, 12.5), layout="constrained")
    places, bottom, colors = {}, 0.0, plt.get_cmap("tab10")
    for number, (room, names) in enumerate(rooms.items()):
        floors = {}
        for name in names:
            floors.setdefault(depth(name), []).append(name)
        rows = [row[i : i + WIDTH] for _, row in sorted(floors.items())
                for i in range(0, len(row), WIDTH)]  # fmt: skip
        for height, row in enumerate(rows):
            for i, name in enumerate(row):
                places[name] = ((i + 0.5 + 0.5 * (height % 2) / len(row)) / len(row),
                                bottom + height + 0.5)  # fmt: skip
        ax.axhspan(bottom, bottom + len(rows), color=colors(number), alpha=0.08, lw=0)
        ax.text(-0.09, bottom + len(rows) / 2, room, color=colors(number), weight="bold",
                va="center")  # fmt: skip
        bottom += len(rows) + 0.25
    for name, others in imports.items():
        for other in others:
            color = colors(ROOMS.index(name.split("/")[0]))
            ax.annotate("", places[other], places[name],
                        arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.35, "lw": 0.7,
                                    "connectionstyle": "arc3,rad=0.08"})  # fmt: skip
    for name, (x, y) in places.items():
        color = colors(ROOMS.index(name.split("/")[0]))
        ax.text(x, y, f"{name.split('/')[-1]}\n{lines[name]}", ha="center", va="center", size=7,
                bbox={"boxstyle": "round", "fc": "white", "ec": color})  # fmt: skip
    count = sum(map(len, imports.values()))
    total = sum(len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py"))
    ax.set(xlim=(-0.1, 1.02), ylim=(0, bottom))
    ax.set_title(f"{len(paths)} modules with their lines, {count} imports, {total:,} lines in all")
    ax.axis("off")
    figure.savefig(target, dpi=110)
    print(f"{len(paths)} modules, {count} imports, {total} lines")


if __name__ == "__main__":
    draw(Path(__file__).parent / "_static" / "imports_after.png")
