"""The pages of the documentation: their code runs as it stands, on problems that are small.

The page on data has a test of its own, with files, and so has the README.
"""

import os
import re
import socket
import textwrap
from pathlib import Path

import deepinv as dinv
import matplotlib
import pytest
import torch
from scripts import smaller
from torch.multiprocessing import start_processes

import deepinv_jitter as dj

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^ *```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
BRAIN = {"size = (96, 96)": "size = (24, 24)", "resolution=2": "resolution=8"}
#: What a page has large, and what is small enough for a test
SMALL = {
    "attacks.md": {
        "epsilons=[0.25, 0.5, 1.0])": "epsilons=[0.5], attacks='quick', draws=2)",
        'epsilons=[0.25, 0.5, 1.0], state="results"': (
            'epsilons=[0.5], state="results", attacks="quick", draws=2'
        ),
    },
    "index.md": {
        "img_size=(48, 48)": "img_size=(16, 16)",
        "Dataset(64, ": "Dataset(8, ",
        "epochs=30": "epochs=1",
        "Dataset(4, ": "Dataset(2, ",
        "steps=20": "steps=2",
        "epsilons=[0.5, 1.0], draws=4": "epsilons=0.5, draws=2",
    },
    "radius.md": BRAIN,
    "reporting.md": {"epsilons=[0.25, 0.5, 1.0]": "epsilons=[0.5], attacks='quick', draws=2"},
    "schemes.md": {"epochs=50": "epochs=1"},
    "troubleshooting.md": {},
    "tutorial.md": BRAIN
    | {
        "spacing=3": "spacing=9",
        '"train", ': '"train", spacing=4, ',
        "steps=10": "steps=2",
        "epsilons=[0.5, 1.0], draws=4": "epsilons=0.5, draws=2",
    },
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


def process(rank, script, port):
    """What torchrun starts, with the environment that it sets."""
    rendezvous = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= rendezvous | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    exec(compile(script, "train.py", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_the_script_for_many_gpus_runs_in_two_processes(tmp_path, monkeypatch, capfd):
    """Forked from this one, as to import torch takes each of them longer than all the rest."""
    (script,) = (code for code in blocks("long_runs.md") if "init_process_group" in code)
    sizes = {
        "epochs=3": "epochs=1",
        "img_size=(48, 48)": "img_size=(16, 16)",
        "steps=10": "steps=2",
    }
    script = smaller(script, sizes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a forked process has none
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    start_processes(process, (script, port), nprocs=2, start_method="fork")
    said = capfd.readouterr().out
    assert said.count("worst case, 0.5 x noise") >= 1
    assert said.count("no flags raised") + said.count("FLAGS") <= 1
    assert list(tmp_path.glob("runs/*/ckp*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(non_blocking|progress bar)")
@pytest.mark.parametrize("page", SMALL)
def test_the_code_of_a_page_runs(page, given, tmp_path, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    code = smaller("\n".join(blocks(page)), SMALL[page])
    exec(compile(code, page, "exec"), given)
