r"""
The paper's tables and figures, one command each
================================================

``python examples/paper/run.py table1`` trains and evaluates what Table 1 of `SGD Jittering
<https://arxiv.org/abs/2410.14667>`_ needs, and writes the table beside the paper's numbers; so do
``table2`` to ``table6``, ``figure1`` to ``figure7``, ``theory``, ``claims`` (the verdict on each of
the paper's claims), ``sigma`` (how the noise levels of the presets were chosen), ``budgets`` (is
training at its end), ``elsewhere`` (other data), ``recipe`` and ``all``.

Each run, one method with one seed, leaves a JSON file and its weights in the folder ``--out``; what
is there is not made again, so that an interrupted command goes on where it stopped, and tables and
figures can be drawn again at no cost.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import budgets
import elsewhere
import figures
import matplotlib
import recipe
import sigma
import speed
import tables
import theory
import verdicts
from methods import BASELINES, CASES
from runs import Archive

#: What makes the other pages.
PAGES = {
    "theory": theory,
    "claims": verdicts,
    "sigma": sigma,
    "recipe": recipe,
    "budgets": budgets,
    "elsewhere": elsewhere,
}
TARGETS = (*(f"table{n}" for n in range(1, 7)), *(f"figure{n}" for n in range(1, 8)), *PAGES)


def about(target: str) -> set[tuple[str, str]]:
    """The cases that a target is about, of which it shows those that are chosen."""
    name = figures.PICTURED.get(target, target)
    if name in tables.TABLES:
        return {tables.TABLES[name].case}
    if target == "figure4":
        return {("seismic", "gd"), ("mri", "gd")}
    if target in ("figure1", "figure6", "theory"):
        return {("points", "gd")}
    if target == "claims":
        return {table.case for table in tables.TABLES.values()}
    return set(CASES) - (set() if target in ("table6", "recipe") else {("points", "gd")})


def make(target: str, archive: Archive, seeds: int) -> Path:
    """One table, figure or page, in the folder of the preset."""
    if target.startswith("figure"):
        path = archive.folder / f"{target}.png"
        figures.draw(target, archive, seeds, path)
        return path
    if target in tables.TABLES:
        text = tables.render(archive, tables.TABLES[target], seeds)
    elif target == "table6":
        text = speed.render(archive)
    else:
        text = PAGES[target].render(archive, seeds)
    path = archive.folder / f"{target}.md"
    path.write_text(text)
    print(text)
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The paper's tables and figures")
    names = ["-".join(case) for case in (*CASES, BASELINES)]
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument(
        "--cases", nargs="+", choices=names, default=names, help="those of all pages"
    )
    parser.add_argument("--preset", choices=("smoke", "cpu", "paper"), default="cpu")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each method")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--data", help="folder of fastMRI single-coil files instead of the brain")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(arguments)
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}")

    matplotlib.use("Agg")
    cases = [case for case in (*CASES, BASELINES) if "-".join(case) in args.cases]
    archive = Archive(
        args.out,
        args.preset,
        cases=cases,
        data=args.data,
        device=args.device,
        verbose=not args.quiet,
    )
    everything = [target for target in TARGETS if about(target) & set(cases)]
    for target in everything if args.target == "all" else [args.target]:
        start = time.perf_counter()
        path = make(target, archive, args.seeds)
        print(f"{path}, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
