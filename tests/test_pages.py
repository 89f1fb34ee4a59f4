"""The pages of the documentation: their code runs as it stands, on problems that are small.

The page on data has a test of its own, with files, and so has the README.
"""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import deepinv as dinv
import matplotlib
import pytest
import torch

import deepinv_jitter as dj

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^ *```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
BRAIN = {"size = (96, 96)": "size = (24, 24)", "resolution=2": "resolution=8"}
#: What a page has large, and what is small enough for a test
SMALL = {
    "attacks.md": {
        "epsilons=[0.25, 0.5, 1.0])": "epsilons=[0.5], attacks='quick', draws=2)",
        'state="results"': 'state="results", attacks="quick", draws=2',
    },
    "index.md": {"img_size=(48, 48)": "img_size=(16, 16)", "steps=10": "steps=2"},
    "radius.md": BRAIN,
    "reporting.md": {"epsilons=[0.25, 0.5, 1.0]": "epsilons=[0.5], attacks='quick', draws=2"},
    "schemes.md": {"epochs=50": "epochs=1"},
    "troubleshooting.md": {},
    "tutorial.md": BRAIN,
}
#: Elsewhere: with files, in many processes, or with settings that hold for the whole process
ELSEWHERE = {"data.md", "long_runs.md"}


def blocks(page):
    return [textwrap.dedent(code) for code in BLOCK.findall((DOCS / page).read_text())]


@pytest.fixture
def given():
    """What a page takes for the reader's own."""
    torch.manual_seed(0)
    size = (24, 24)
    slices = dj.BrainSliceDataset("test", img_size=size, resolution=8, spacing=6)
    x = torch.stack([sample["x"] for sample in slices])[:3]
    noise = dinv.physics.GaussianNoise(0.05)
    mask = dj.FastMRIMaskGenerator(size, acceleration=4, seed=0).step(1)["mask"]
    physics = dj.SingleCoilMRI(mask, img_size=size, noise_model=noise)
    y = physics(x)
    measured = dinv.datasets.TensorDataset(x=x, y=y, use_dict_output=True)
    loader = torch.utils.data.DataLoader(measured, batch_size=3)
    model, a, b = (dj.demo_network(n) for n in ("mri_mse", "mri_mse", "mri_robust"))
    dj.jitter(model, 0.05)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    return {
        "__name__": "page", "dinv": dinv, "dj": dj, "torch": torch, "x": x, "y": y, "a": a, "b": b,
        "model": model, "networks": {"MSE": a, "robust": b}, "optimizer": optimizer,
        "physics": physics, "loader": loader, "dataloader": loader,
    }  # fmt: skip


def test_every_page_with_code_is_run():
    with_code = {path.name for path in DOCS.glob("*.md") if blocks(path.name)}
    assert with_code == SMALL.keys() | ELSEWHERE


def test_code_that_runs_elsewhere_is_python():
    for page in ELSEWHERE:
        for code in blocks(page):
            compile(code, page, "exec")


def test_every_picture_has_an_alternative_text_and_a_caption():
    """An option over two lines ends the options: its second line becomes the caption."""
    figures = 0
    for page in DOCS.rglob("*.md"):
        text = page.read_text()
        assert "![" not in text, f"{page.name}: a picture without a caption, use {{figure}}"
        for body in re.findall(r"^```{figure} [^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            options, _, caption = body.partition("\n\n")
            figures += 1
            assert all(line.startswith(":") for line in options.splitlines()), (page.name, options)
            assert re.search(r"^:alt: .{20,}", options, re.MULTILINE), (page.name, options)
            assert caption.strip(), (page.name, options)
    assert figures >= 10


@pytest.mark.slow
def test_the_script_for_many_gpus_runs_in_two_processes(tmp_path):
    (script,) = (code for code in blocks("long_runs.md") if "init_process_group" in code)
    assert "epochs=3" in script and "img_size=(48, 48)" in script
    script = script.replace("epochs=3", "epochs=1").replace(
        "img_size=(48, 48)", "img_size=(16, 16)"
    )
    (tmp_path / "train.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--nproc_per_node=2", "train.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("worst case, 0.5 x noise") >= 1
    assert done.stdout.count("no flags raised") + done.stdout.count("FLAGS") <= 1
    assert list(tmp_path.glob("runs/*/ckp*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(non_blocking|progress bar)")
@pytest.mark.parametrize("page", SMALL)
def test_the_code_of_a_page_runs(page, given, tmp_path, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(page))
    for large, small in SMALL[page].items():
        assert large in code
        code = code.replace(large, small)
    exec(compile(code, page, "exec"), given)
