r"""The paper's tables, made from the runs alone, beside the paper's own numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import paper
from intervals import Interval, crossed, paired
from methods import BASELINES, METHODS
from runs import Archive, Run, scores

from deepinv_jitter.evaluation.tables import markdown


@dataclass(frozen=True)
class Table:
    """Which runs stand in a table of the paper."""

    number: int
    title: str
    problem: str
    algorithm: str
    methods: tuple[str, ...] = ("mse", "at", "input", "jitter")
    baselines: bool = False  # beside those of the method

    @property
    def case(self) -> tuple[str, str]:
        """What chooses it."""
        return BASELINES if self.baselines else (self.problem, self.algorithm)

    @property
    def name(self) -> str:
        return f"table{self.number}"

    def runs(self, method: str, seeds: int) -> list[Run]:
        algorithm = "unet" if method == "ddpm" else self.algorithm
        return [Run(self.problem, algorithm, method, seed) for seed in range(seeds)]

    def label(self, method: str) -> str:
        return METHODS[method].label_for(self.algorithm)


TABLES = {
    table.name: table
    for table in (
        Table(1, "Seismic deconvolution, unrolled gradient descent", "seismic", "gd"),
        Table(2, "Single-coil MRI, unrolled gradient descent", "mri", "gd"),
        Table(3, "Seismic deconvolution, unrolled proximal gradient descent", "seismic", "pgd"),
        Table(4, "Single-coil MRI, unrolled proximal gradient descent", "mri", "pgd"),
        Table(
            5,
            "Single-coil MRI, other baselines",
            "mri",
            "gd",
            ("mse", "at", "input", "jitter", "sn", "ddpm"),
            baselines=True,
        ),
    )
}


def case_name(problem: str, algorithm: str) -> str:
    """As in a heading, such as "MRI, PGD"."""
    names = {"points": "Points", "seismic": "Sections", "mri": "MRI"}
    return f"{names[problem]}, {algorithm.upper()}"


def tables_of(archive: Archive) -> list[Table]:
    """Those of its cases."""
    return [t for t in TABLES.values() if t.case in (*archive.cases, *archive.others)]


class Results:
    """The values of a table's methods, by condition and metric: shape `(seeds, images)`."""

    def __init__(self, archive: Archive, table: Table, seeds: int):
        self.table, self.seeds = table, seeds
        self.problem = archive.problem(table.problem)
        strong = self.problem.settings.attacked
        self.conditions = {
            "in distribution": "clean",
            "paper's attack": strong.replace("worst case", "paper attack"),
            "strong attack": strong,
            **{name: name for name in self.problem.shifts},
        }
        self.shift = next(iter(self.problem.shifts))
        self.records = {m: [archive.record(r) for r in table.runs(m, seeds)] for m in table.methods}
        self.references = {
            name: [archive.record(Run(table.problem, "reference", name))]
            for name in self.problem.references
        }
        samples = [r["samples"] for rs in self.all.values() for r in rs]
        self.count = min(map(len, samples))  # the first of the split, which all have
        samples = {tuple(names[: self.count]) for names in samples}
        if len(samples) > 1:
            raise ValueError(
                f"all runs of {table.name} must be evaluated on the same samples, but there are "
                f"{len(samples)} sets: delete the runs that were made with other data."
            )

    @property
    def all(self) -> dict[str, list[dict]]:
        return self.references | self.records

    def values(self, method: str, column: str, metric: str) -> list[list[float]]:
        condition = self.conditions[column]
        return [scores(r, condition, metric)[: self.count] for r in self.all[method]]

    def mean(self, method: str, column: str, metric: str) -> Interval:
        return crossed(self.values(method, column, metric))

    def difference(self, a: str, b: str, column: str, metric: str) -> Interval:
        """Of two methods on the same images, seed by seed."""
        return paired(self.values(a, column, metric), self.values(b, column, metric))

    def best(self, column: str, metric: str) -> set[str]:
        """The best of the trained methods, and those whose difference from it is undecided."""
        top = max(self.records, key=lambda m: self.mean(m, column, metric).mean)
        return {
            m
            for m in self.records
            if m == top or not self.difference(top, m, column, metric).decided
        }


def columns(results: Results) -> list[str]:
    """The columns of a table: those of the paper, and the strong attack beside its own."""
    return ["in distribution", "paper's attack", "strong attack", results.shift]


def rows_of(results: Results) -> list[list[str]]:
    """PSNR / SSIM of every method, those not worse than the best in bold."""
    names = columns(results)
    rows = [["method", *names, "detail kept"]]
    for method in results.all:
        trained = method in results.records
        row = [results.table.label(method) if trained else method]
        for name in names:
            cell = both(results, method, name)
            best = trained and method in results.best(name, "PSNR")
            row.append(f"**{cell}**" if best else cell)
        kept = results.mean(method, results.shift, "contrast recovery")
        rows.append(row + [f"{kept.mean:.2f} ± {kept.half:.2f}"])
    return rows


def both(results: Results, method: str, column: str) -> str:
    psnr, ssim = (results.mean(method, column, metric) for metric in ("PSNR", "SSIM"))
    return f"{psnr.mean:.2f} ± {psnr.half:.2f} / {ssim.mean:.3f}"


def printed_of(results: Results) -> list[list[str]]:
    """The paper's own numbers of these methods."""
    rows = [["as the paper prints it", "in distribution", "attack", "out of distribution"]]
    for method, numbers in paper.TABLES[results.table.name].items():
        cells = (f"{psnr:.2f} / {ssim:.3f}" for psnr, ssim in numbers)
        rows.append([results.table.label(method), *cells])
    return rows


def differences_of(results: Results) -> list[list[str]]:
    """The PSNR of every method minus that of MSE training, on the same images and seeds."""
    rows = [["PSNR minus that of MSE training", *columns(results)]]
    for method in results.records:
        if method != "mse":
            row = [results.table.label(method)]
            for column in columns(results):
                d = results.difference(method, "mse", column, "PSNR")
                row.append(f"{d}" if d.decided else f"{d} (undecided)")
            rows.append(row)
    return rows


def spread_of(results: Results) -> list[list[str]]:
    """What another training of the same method gives: over the seeds, means over the images."""
    rows = [["mean PSNR of a training", "clean, worst", "clean, std", "attacked, worst",
             "attacked, best", "attacked, std"]]  # fmt: skip
    for method in results.records:
        clean, attacked = (
            np.mean(results.values(method, column, "PSNR"), axis=1)
            for column in ("in distribution", "strong attack")
        )
        deviations = (f"{v.std(ddof=1):.2f}" if len(v) > 1 else "" for v in (clean, attacked))
        row = [results.table.label(method), f"{clean.min():.2f}", next(deviations)]
        row += [f"{attacked.min():.2f}", f"{attacked.max():.2f}", next(deviations)]
        rows.append(row)
    return rows


def render(archive: Archive, table: Table, seeds: int) -> str:
    """The page of a table."""
    results = Results(archive, table, seeds)
    first = results.records["mse"][0]
    settings = results.problem.settings
    unit = {None: "", "noise": " times the norm of the measurement noise"}[settings.relative_to]
    devices = sorted({r["device"] for rs in results.all.values() for r in rs})
    strong = (
        f"is the worst of APGD ({settings.steps} steps) and 10 Frank-Wolfe steps"
        if settings.steps
        else "is `evaluate_robustness`'s standard: it goes on until it has converged"
    )
    notes = [
        f"PSNR in dB / SSIM (deepinv's, peak 1), means over {seeds} training seeds and "
        f"{results.count} test images with 95 % intervals of the PSNR over both. Bold: the "
        "best, and all whose paired difference from it is undecided.",
        f"Attack radius {settings.radius:g}{unit}. The "
        f"paper's attack takes {results.problem.paper_attack['steps']} steps from zero; the strong "
        f"one {strong}. {flagged(results)}",
        "What the paper prints is of its own data, for comparison of orderings only; its attack "
        "has radius 1.",
        f"Preset {archive.preset}, {', '.join(devices)}; "
        + ", ".join(f"{k} {v}" for k, v in first["versions"].items())
        + f"; {total_seconds(results) / 60:.0f} min of training and evaluation in all, on "
        "a machine that may have been busy: what a training costs is in Table 6.",
    ]
    title = f"Table {table.number}: {table.title}"
    parts = [f(results) for f in (rows_of, differences_of, spread_of, printed_of)]
    text = [f"# {title}", *map(markdown, parts)]
    return "\n\n".join(text + ["\n".join(f"- {note}" for note in notes)]) + "\n"


def flagged(results: Results) -> str:
    """The doubts that the strong attack raises itself, over all methods of the table."""
    condition = results.conditions["strong attack"]
    records = [r for rs in results.all.values() for r in rs]
    counts = Counter({"not_converged": 0})
    for record in records:
        counts.update(record["conditions"][condition]["flags"])
    total = sum(len(r["samples"]) for r in records)
    return f"Of {total} attacks " + ", ".join(f"{n} are {flag}" for flag, n in counts.items()) + "."


def total_seconds(results: Results) -> float:
    return sum(sum(r["seconds"].values()) for rs in results.all.values() for r in rs)
