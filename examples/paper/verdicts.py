r"""The paper's claims, each held against the runs: it holds, does not, or is undecided."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from intervals import Interval
from runs import Archive
from tables import TABLES, Results, markdown

SHIFT = "shift"  # the table's own out-of-distribution column
RECOVERY = "contrast recovery"


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

    def difference(self, results: Results) -> Interval:
        column = results.shift if self.column == SHIFT else self.column
        return results.difference(self.better, self.worse, column, self.metric)


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


def verdict(difference: Interval) -> str:
    if not difference.decided:
        return "undecided at this budget"
    return "holds" if difference.low > 0 else "does not hold"


def rows_of(archive: Archive, seeds: int) -> list[list[str]]:
    rows = [["table", "claim of the paper", "difference", "verdict"]]
    for name, table in TABLES.items():
        results = Results(archive, table, seeds)
        for claim in CLAIMS:
            if name in claim.tables:
                d = claim.difference(results)
                unit = "" if claim.metric == RECOVERY else " dB"
                rows.append(
                    [
                        str(table.number),
                        claim.sentence(results),
                        f"{d.mean:+.2f} ± {d.half:.2f}{unit}",
                        verdict(d),
                    ]
                )
    return rows


def render(archive: Archive, seeds: int) -> str:
    """The list of verdicts."""
    rows = rows_of(archive, seeds)
    counts = Counter(row[-1] for row in rows[1:])
    summary = (
        f"{counts['holds']} hold, {counts['does not hold']} do not and "
        f"{counts['undecided at this budget']} are undecided at this budget"
    )
    return (
        f"# The paper's claims\n\nPreset {archive.preset}, {seeds} training seeds, paired "
        f"differences with 95 % intervals over seeds and test images, strong attack. Of "
        f"{len(rows) - 1} claims: {summary}.\n\n{markdown(rows)}\n"
    )
