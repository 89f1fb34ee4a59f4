r"""What tables and pictures say in words: units, conditions, headlines and notes."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from itertools import groupby

import deepinv

from .results import CLEAN, RANDOM, TRAINING, WORST, Condition, Results
from .statistics import better
from .tables import Cell, Table

#: What is said of an attack that stops whether or not it has converged.
LOWER_BOUND = "LOWER BOUND: the attack takes a fixed number of steps; with more, it does more harm."

#: What the radius is a multiple of, by the unit it is given in.
MULTIPLES = {"noise": "x noise", "y": "x signal"}


def unit_of(results: Results) -> str:
    """The unit that radii were given in: noise, y, measurement or image."""
    return results.description.get("unit", "measurement")


def size(results: Results, *conditions: Condition) -> str:
    """The radii of conditions, and their unit once."""
    texts = ", ".join(f"{condition.eps:.6g}" for condition in conditions)
    unit = unit_of(results)
    if unit in MULTIPLES:
        return f"{texts} {MULTIPLES[unit]}"
    image = "image " if unit == "image" else ""
    return f"{image}{_norm(results)} {texts}"


def _norm(results: Results) -> str:
    return "max" if results.description.get("norm") == "LinfBall" else "norm"


def name_of(results: Results, *conditions: Condition, joint: str = ", ") -> str:
    """A condition as tables call it, or several of one kind."""
    kind = conditions[0].kind
    return kind if conditions[0].eps is None else f"{kind}{joint}{size(results, *conditions)}"


def label_of(results: Results, name: str, argument: str = "condition") -> str:
    """The label of a condition, which may be called by it or as tables do, on one line or two."""
    names = {c.label: name_of(results, c) for c in results.conditions}
    if name in names:
        return name
    found = [label for label in names if _plain(names[label]) == _plain(name)]
    if len(found) != 1:
        accepted = [*dict.fromkeys([*names, *names.values()])]
        raise ValueError(f"{argument} must be among {accepted}, got {name!r}.")
    return found[0]


def _plain(name: object) -> str:
    return " ".join(str(name).replace(",", " ").split())


def with_unit(metric: str) -> str:
    return f"{metric} [dB]" if decibel(metric) else metric


def title_of(metric: str, best: float) -> str:
    return f"{with_unit(metric)}, {better(best)} is better"


def decibel(metric: str) -> bool:
    """Whether a metric, by its name, is in dB."""
    return "SNR" in metric


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def value(metric: str, number: float, sign: str = "") -> str:
    return f"{number:{sign}.1f} dB" if decibel(metric) else f"{metric} {number:{sign}.3g}"


def as_large_as(condition: Condition, results: Results) -> str:
    ratio = results.radius(condition, "radius/|noise|")
    if math.isfinite(ratio):
        times = f"{ratio:.2g} times "
        whole = {"1 times ": "", "0.5 times ": "half ", "2 times ": "twice "}
        return f"{whole.get(times, times)}as large as the noise"
    if unit_of(results) == "y":
        return f"{100 * (condition.eps or 0):.3g} % as large as the measurements"
    return f"of {size(results, condition)}"


def headline(results: Results) -> str:
    """One sentence: how good on clean measurements, and how good under attack."""
    metric = results.shown(None)[0]
    start, form = ("", "{:.1f} dB") if decibel(metric) else (f"{metric}: ", "{:.3g}")

    def found(label: str) -> str:
        return form.format(results.scores(label, metric).mean().item())

    text = f"{start}{found(CLEAN)} clean"
    worst = results.attacked()
    if worst is None:
        return f"{text}."
    drawn = found(Condition(RANDOM, worst.eps).label)
    where = as_large_as(worst, results)
    return f"{text}, {found(worst.label)} under perturbations {where} ({drawn} if random)."


def doubts(reports: dict[str, Results]) -> list[str]:
    """What a reader must know before the numbers: flags, and networks that are worse than none."""
    first = next(iter(reports.values()))
    total = len(first.digests)
    flags = {name: report.flags for name, report in reports.items()}
    lines = []
    # That a model came in training mode, as they do from a training, casts no doubt
    told = (flag for raised in flags.values() for flag in raised if flag != TRAINING)
    for flag in dict.fromkeys(told):
        where = {name: raised.get(flag, {}) for name, raised in flags.items()}
        for conditions in _kinds(set().union(*where.values()), first):
            counts = {
                name: ", ".join(str(found.get(c.label, 0)) for c in conditions)
                for name, found in where.items()
                if any(c.label in found for c in conditions)
            }
            each = [f"{name} {n} of {total}".strip() for name, n in counts.items()]
            place = name_of(first, *conditions, joint=" at ")
            lines.append(f"FLAG {flag}, {place}: {'; '.join(each)}")
    lines = lines or ["no flags raised"]
    worse = {name: report.worse_than for name, report in reports.items()}
    for reference in dict.fromkeys(r for than in worse.values() for r in than):
        each = []
        for name, than in worse.items():
            if found := than.get(reference):
                places = [name_of(first, *c, joint=" at ") for c in _kinds(found, first)]
                if len(found) == len(first.conditions):
                    places = ["everywhere"]
                each.append(", ".join(filter(None, [name, *places])))
        lines.append(f"WORSE on average than {reference}: {'; '.join(each)}")
    return lines


def _kinds(labels: Container[str], results: Results) -> Iterable[list[Condition]]:
    """The conditions with these labels, those of a kind together."""
    known = [condition for condition in results.conditions if condition.label in labels]
    return [[*same] for _, same in groupby(known, lambda condition: condition.kind)]


def basis(results: Results) -> list[str]:
    told, known = ("attack", "objective", "peak", "draws", "seed"), results.description
    lines = [f"{key}: {known[key]}" for key in told if known.get(key)]
    return [*lines, f"deepinv {deepinv.__version__}"]


def radii(results: Results) -> list[Table]:
    """The radii in all their units, and what they amount to in the image."""
    worst = [c for c in results.conditions if c.kind == WORST]
    heads = {"radius/|noise|": "x noise", "radius/|y|": "x signal", "radius": _norm(results)}
    del heads[{"noise": "radius/|noise|", "y": "radius/|y|"}.get(unit_of(results), "radius")]
    columns = {head: [results.radius(c, unit) for c in worst] for unit, head in heads.items()}
    for head, kind in {"in image, random": RANDOM, "in image, worst": WORST}.items():
        columns[head] = [results.radius(Condition(kind, c.eps), "|A'dy|") for c in worst]
    columns = {head: known for head, known in columns.items() if any(map(math.isfinite, known))}
    if not columns:
        return []
    names = [size(results, condition) for condition in worst]
    texts = [[f"{number:.3g}" for number in known] for known in columns.values()]
    rows = [[*map(Cell, row)] for row in zip(names, *texts, strict=True)]
    title = "The radii in other units; in image: the norm of A'd for a perturbation d"
    return [Table(title, ["as given", *columns], rows)]
