r"""What the figures share: colours that the colour-blind tell apart, fonts, captions."""

from __future__ import annotations

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


def caption(figure: plt.Figure, archive: Archive, number: str, text: str) -> None:
    """What is shown, and what it rests on."""
    figure.suptitle(f"Figure {number}. {text}. Preset {archive.preset}.", fontsize=10, wrap=True)
