r"""What the figures share: colours that the colour-blind tell apart, fonts, captions."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from runs import Archive

#: The methods that are drawn.
DRAWN = ("mse", "at", "input", "jitter")
# Okabe and Ito's colours, which the colour-blind tell apart, with a marker each
STYLE = {
    "mse": ("#000000", "o"),
    "at": ("#D55E00", "s"),
    "input": ("#E69F00", "^"),
    "jitter": ("#0072B2", "D"),
}
plt.rcParams |= {
    "font.size": 12,  # read at a third of the size, on a phone
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "legend.frameon": False,
}


def write(figure: plt.Figure, path: Path, archive: Archive, text: str) -> None:
    """The file of a figure, whose number is in its name: what is shown, and what it rests on."""
    text = f"Figure {path.stem[-1]}. {text}. Preset {archive.preset}."
    figure.suptitle(text, fontsize=10, wrap=True)
    figure.savefig(path)
    plt.close(figure)
