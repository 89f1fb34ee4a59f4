r"""The paper's claims, each held against the runs: it holds, does not, or is undecided."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from intervals import Interval, crossed, holm
from runs import Archive
from tables import Results, markdown, tables_of

SHIFT = "shift"  # the table's own out-of-distribution column
RECOVERY = "contrast recovery"
UNDECIDED = "undecided"
LEVEL = 0.05
MOST = 20  # times the data that are looked at


@dataclass(frozen=True)
class Claim:
    """One method is better than another in a column: by PSNR, or by the detail it keeps."""

    better: str
    worse: str
    column: str
    metric: str = "PSNR"
    tables: tuple[str, ...] = ("table1", "table2", "table3", "table4")

    def sentence(self, results: Results) -> str:
        a, b = (results.table.label(m) for m in (self.better, self.worse))
        if self.metric == RECOVERY:
            return f"{a} keeps more of the new detail than {b}"
        where = {
            "in distribution": "in distribution",
            "strong attack": "under attack",
            SHIFT: "out of distribution",
        }[self.column]
        return f"{a} is better than {b} {where}"

    def differences(self, results: Results) -> np.ndarray:
        """Of shape `(seeds, images)`."""
        column = results.shift if self.column == SHIFT else self.column
        a, b = (results.values(m, column, self.metric) for m in (self.better, self.worse))
        return np.subtract(a, b)


CLAIMS = (
    Claim("jitter", "mse", "in distribution"),
    Claim("jitter", "mse", "strong attack"),
    Claim("jitter", "mse", SHIFT),
    Claim("jitter", "at", "in distribution"),
    Claim("jitter", "at", SHIFT),
    Claim("jitter", "at", SHIFT, RECOVERY),
    Claim("at", "mse", "strong attack"),
    Claim("at", "jitter", "strong attack", tables=("table1", "table2", "table3")),
    Claim("jitter", "at", "strong attack", tables=("table4",)),
    Claim("mse", "at", "in distribution"),
    Claim("mse", "input", "in distribution"),
    Claim("input", "mse", "strong attack", tables=("table1", "table3", "table4")),
    Claim("mse", "input", "strong attack", tables=("table2",)),
    Claim("sn", "mse", "strong attack", tables=("table5",)),
    Claim("mse", "sn", "in distribution", tables=("table5",)),
    Claim("ddpm", "mse", "strong attack", tables=("table5",)),
    Claim("jitter", "ddpm", SHIFT, tables=("table5",)),
)


def verdict(difference: Interval, decided: bool) -> str:
    if not decided:
        return UNDECIDED
    return "holds" if difference.mean > 0 else "does not hold"


def needed(differences: np.ndarray, level: float) -> str:
    """How many times the images and the trainings would decide, if they showed the same."""
    found = (f for f in range(2, MOST + 1) if crossed(np.tile(differences, (f, f))).p <= level)
    return str(next(found, f"> {MOST}"))


def rows_of(archive: Archive, seeds: int) -> list[list[str]]:
    """The claims with their differences; which are decided is corrected for their number."""
    held = []
    for table in tables_of(archive):
        results = Results(archive, table, seeds)
        held += [
            (table, claim, claim.sentence(results), claim.differences(results))
            for claim in CLAIMS
            if table.name in claim.tables
        ]
    rows = [["table", "claim of the paper", "difference", "p", "verdict", "data needed"]]
    intervals = [crossed(differences) for *_, differences in held]
    decided = holm(intervals, LEVEL)
    level = LEVEL / max(1, decided.count(False))
    for (table, claim, sentence, values), d, sure in zip(held, intervals, decided, strict=True):
        unit = "" if claim.metric == RECOVERY else " dB"
        p = "< 0.0001" if d.p < 1e-4 else f"{d.p:.4f}"
        more = "" if sure else f"x {needed(values, level)}"
        rows.append([str(table.number), sentence, f"{d}{unit}", p, verdict(d, sure), more])
    return rows


def render(archive: Archive, seeds: int) -> str:
    """The list of verdicts."""
    rows = rows_of(archive, seeds)
    counts = Counter(row[-2] for row in rows[1:])
    summary = (
        f"{counts['holds']} hold, {counts['does not hold']} do not and "
        f"{counts[UNDECIDED]} are undecided at this budget"
    )
    return (
        f"# The paper's claims\n\nPreset {archive.preset}, {seeds} training seeds, paired "
        "differences with 95 % intervals over seeds and test images, strong attack. A claim is "
        "decided if it is at a level of 5 % for all claims together, by Holm's correction. Of "
        f"{len(rows) - 1} claims: {summary}. The last column: so many times the images and the "
        "trainings would decide it, if they showed the same differences.\n\n"
        f"{markdown(rows)}\n"
    )
