r"""Networks side by side, on the same samples."""

from __future__ import annotations

from dataclasses import dataclass

from .tables import interval, rendered


@dataclass(repr=False, eq=False)
class RobustnessComparison:
    r"""
    Differences between two reports, see :meth:`RobustnessReport.compare`; printing shows them.

    :param list rows: dictionaries with ``metric``, ``condition``, ``difference`` of the means,
        ``low`` and ``high`` of its 95 % interval, and ``verdict``.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> first, second = (
    ...     dj.evaluate_robustness(
    ...         dj.UnfoldedGD(dj.PointMLP(), stepsize=s, max_iter=3), [torch.zeros(50, 2)], physics,
    ...         epsilons=[], verbose=False)
    ...     for s in (0.5, 0.5))
    >>> print(sorted(first.compare(second)["clean", "squared error"]))
    ['better', 'condition', 'difference', 'high', 'low', 'metric', 'verdict']
    """

    rows: list[dict[str, str | float]]

    def __getitem__(self, key: tuple[str, str]) -> dict[str, str | float]:
        """The row of a condition and a metric."""
        for row in self.rows:
            if (row["condition"], row["metric"]) == key:
                return row
        raise KeyError(key)

    def table(self, format: str = "text") -> str:
        r"""
        The rows as a table.

        :param str format: ``"text"``, ``"markdown"`` or ``"csv"``. Default: ``"text"``.
        :return: (:class:`str`) the table.
        :raises ValueError: if the format is unknown.
        """

        def shown(row: dict) -> dict[str, str]:
            return {
                "difference": f"{row['difference']:.4g}",
                "95% interval": interval(row),
                "verdict": row["verdict"],
            }

        return rendered(self.rows, shown, format)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"RobustnessComparison({len(self.rows)} rows)"


# What belongs to one model, and may differ between reports that are compared
PER_MODEL = ("model", "device")
