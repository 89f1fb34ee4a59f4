"""The demos run from start to end, at their smallest size."""

import runpy
import sys
from pathlib import Path

import matplotlib
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
DEMOS = {
    "mri/demo_mri_jittering.py": (
        ["--epochs", "1", "--size", "24"],
        [
            "mri_jittering.csv",
            "mri_jittering.png",
            "gd_mse.pt",
            "pgd_spgd_jittering.pt",
        ],
    ),
    "noise_level/demo_choose_sigma.py": (["--epochs", "1"], ["choose_sigma.png"]),
    "points/demo_points.py": ([], []),
    "robustness/demo_attack_and_report.py": (
        ["--slices", "1", "--steps", "2"],
        ["robustness_pgd_mse.csv", "curve_pgd_spgd_jittering.png", "attack.png"],
    ),
}


def test_every_demo_is_listed():
    assert {str(p.relative_to(EXAMPLES)) for p in EXAMPLES.rglob("demo_*.py")} == set(
        DEMOS
    )


@pytest.mark.parametrize("demo", DEMOS)
def test_demo(demo, tmp_path, monkeypatch):
    arguments, files = DEMOS[demo]
    matplotlib.use("Agg")
    monkeypatch.setattr(sys, "argv", [demo, *arguments, "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / demo), run_name="__main__")
    for file in files:
        assert (tmp_path / file).stat().st_size > 100, file
