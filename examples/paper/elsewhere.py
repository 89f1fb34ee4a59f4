r"""Other heads, other sections, other scans: data that no choice of ours has looked at."""

from __future__ import annotations

from intervals import crossed, holm, paired
from methods import METHODS
from runs import Archive, Run
from tables import case_name, markdown

COMPARED = ("mse", "at", "input", "jitter", "half")


def rows_of(archive: Archive, problem: str, algorithm: str, seeds: int) -> list[list[str]]:
    """PSNR of every method on every kind of data; the difference from MSE training beside."""
    records = {m: archive.records(problem, algorithm, m, seeds) for m in COMPARED}
    reference = list(archive.problem(problem).references)[-1]
    classical = archive.record(Run(problem, "reference", reference))["elsewhere"]
    kinds = list(archive.problem(problem).elsewhere)
    # The first samples, which all have
    count = {k: min(len(r["elsewhere"][k]) for rs in records.values() for r in rs) for k in kinds}

    def values(method: str, kind: str) -> list[list[float]]:
        return [r["elsewhere"][kind][: count[kind]] for r in records[method]]

    others = COMPARED[1:]
    differences = {
        (kind, m): paired(values(m, kind), values("mse", kind)) for kind in kinds for m in others
    }
    decided = dict(zip(differences, holm(list(differences.values())), strict=True))
    labels = [METHODS[m].label_for(algorithm) for m in COMPARED]
    rows = [["data", reference, *labels]]
    for kind in kinds:
        row = [kind, f"{sum(classical[kind][: count[kind]]) / count[kind]:.2f}"]
        row.append(f"{crossed(values('mse', kind)).mean:.2f}")
        for m in others:
            d = differences[kind, m]
            row.append(f"**{d}**" if decided[kind, m] and d.mean > 0 else f"{d}")
        rows.append(row)
    return rows


def render(archive: Archive, seeds: int) -> str:
    """The page."""
    parts = "\n\n".join(
        f"## {case_name(problem, algorithm)}\n\n"
        + markdown(rows_of(archive, problem, algorithm, seeds))
        for problem, algorithm in archive.images
    )
    return f"""# Elsewhere

PSNR in dB without attack, on data that nothing was tuned on: of the classical method and of MSE
training, and for the others the difference from MSE training on the same images, {seeds} training
seeds, 95 % intervals over seeds and images. Bold: better beyond doubt, by Holm's correction for
all differences of a table. The networks are told the physics they meet: mask, wavelet. Preset
{archive.preset}.

{parts}
"""
