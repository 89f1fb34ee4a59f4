r"""What is drawn and written of one network or of several, in the same way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import plots
from .pictures import drawn
from .results import Results
from .tables import write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Views:
    r"""
    Curves, pictures and files. A subclass says what it shows: ``_networks``, its results by the
    names of the networks, and ``records``, the lines of a file.
    """

    @property
    def _networks(self) -> dict[str, Results]:
        raise NotImplementedError

    @property
    def records(self) -> list[dict]:
        raise NotImplementedError

    def plot(
        self,
        path: str | os.PathLike | None = None,
        metrics: str | Sequence[str] | None = None,
        ax: Axes | None = None,
    ) -> Figure:
        r"""
        The security curves: a metric against the radius, under the worst case (solid) and random
        perturbations of the same norm (dashed), with the 95 % interval of the mean. Several
        networks share a pair of axes; their colours and markers are told apart in black and white,
        too.

        Files are vector graphics if ``path`` says so (``.pdf``, ``.svg``), with text that can be
        edited and searched.

        :param str, os.PathLike, None path: file to write. Default: ``None``, none.
        :param str, Sequence[str], None metrics: names of metrics, a pair of axes each, or
            ``"all"``. Default: ``None``, the first that the table shows.
        :param matplotlib.axes.Axes, None ax: axes to draw into, for one metric. Default: ``None``,
            a new figure.
        :return: (:class:`matplotlib.figure.Figure`) the figure.
        :raises ValueError: if no radius was evaluated, a metric is unknown, or ``ax`` is given for
            several.
        """
        return plots.curves(self._networks, metrics, path, ax)

    def images(
        self,
        samples: int | Sequence[int] | None = None,
        condition: str | None = None,
        path: str | os.PathLike | None = None,
    ) -> Figure:
        r"""
        The truth and what each network makes of it: clean, attacked, the error of that, and the
        place where the errors are largest, enlarged. All images share one scale, all errors
        another.

        Complex images, of two channels or complex type, are shown by their magnitude, sections and
        other images that change sign in grey around zero with errors in red and blue, images of
        three channels in colour, volumes by their middle slice, and points of the plane as such.
        The perturbations are those found for each network.

        :param int, Sequence[int], None samples: how many, or which of those that the evaluation
            kept (its argument ``pictures``), from 0. Default: ``None``, one image, or all points.
        :param str, None condition: label of the condition that is called attacked above, such as
            ``"worst case, eps=1"`` or that of a shift. Default: ``None``, the worst case nearest to
            the noise, or of the largest radius.
        :param str, os.PathLike, None path: file to write, see :meth:`plot`. Default: ``None``.
        :return: (:class:`matplotlib.figure.Figure`) the figure.
        :raises ValueError: if there are no such samples, no such condition or no pictures.
        """
        return drawn(self._networks, samples, condition, path)

    def to_csv(self, path: str | os.PathLike) -> None:
        r"""
        Write ``records``, the values of all samples, all digits of them; flags as 0 and 1, and
        nothing where a condition has no such column.

        :param str, os.PathLike path: file to write.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            write_csv(file, self.records)
