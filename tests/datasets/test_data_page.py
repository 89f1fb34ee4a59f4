"""The page on one's own data runs as it stands, on small files in the formats that it names."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import segyio
import torch
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
#: What the page has large, and what is small enough for a test
SMALL = {
    "size = (320, 320)": "size = (32, 32)",
    "size, cropped = (640, 368), (320, 320)": "size, cropped = (48, 40), (36, 36)",
    "size = (352, 352)": "size = (24, 16)",
    "epochs=50": "epochs=1",
    "max_iter=10": "max_iter=2",
    "steps=20": "steps=2",
    "epsilons=[0.02]": "epsilons=[0.02], attacks='quick', draws=1",
    "UnrolledDnCNN(2, ": "UnrolledDnCNN(2, depth=3, width=8, ",
    "UnrolledDnCNN(1, ": "UnrolledDnCNN(1, depth=3, width=8, ",
}


def sections_of(page):
    """The code of each section, by its heading; what stands before the first belongs to all."""
    start, *rest = re.split(r"^## ", page, flags=re.MULTILINE)
    blocks = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
    shared = "".join(blocks.findall(start))
    return {text.splitlines()[0]: shared + "".join(blocks.findall(text)) for text in rest}


def write_fastmri(folder, volumes, coils=()):
    rng = np.random.default_rng(volumes)
    folder.mkdir(parents=True)
    for n in range(volumes):
        with h5py.File(folder / f"file{n}.h5", "w") as file:
            kspace = rng.standard_normal((3, *coils, 48, 40, 2)).astype(np.float32)
            file["kspace"] = kspace.view(np.complex64)[..., 0]
            name = "reconstruction_rss" if coils else "reconstruction_esc"
            file[name] = rng.random((3, 36, 36), np.float32)
            file["ismrmrd_header"] = "<ismrmrdHeader></ismrmrdHeader>"


@pytest.fixture
def files(tmp_path, monkeypatch):
    write_fastmri(tmp_path / "knee" / "singlecoil_train", 2)
    write_fastmri(tmp_path / "knee" / "singlecoil_val", 1)
    write_fastmri(tmp_path / "knee" / "multicoil_train", 1, coils=(2,))
    torch.save(torch.ones(1, 2, 48, 40, dtype=torch.complex64), tmp_path / "coil_maps.pt")
    rng = np.random.default_rng(0)
    for name in ("reflectivity.sgy", "survey.sgy"):
        cube = rng.standard_normal((5, 16, 24)).astype(np.float32)
        segyio.tools.from_array3D(str(tmp_path / name), cube, dt=2000)
    (tmp_path / "photographs").mkdir()
    for n in range(2):
        pixels = rng.integers(0, 256, (70, 80, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{n}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(heading):
    code = sections_of(PAGE.read_text())[heading]
    for large, small in SMALL.items():
        code = code.replace(large, small)
    names = {"__name__": "page"}
    exec(compile(code, f"data.md, {heading}", "exec"), names)
    return names


def test_what_a_test_makes_small_is_in_the_page():
    assert all(large in PAGE.read_text() for large in SMALL)


@pytest.mark.filterwarnings("ignore:.*(non_blocking|progress bar)")
def test_fastmri_from_the_files_to_the_report(files, capsys):
    names = run("A folder of fastMRI files")
    assert len(names["train"]) == 6 and len(names["test"]) == 1
    assert (files / "knee.pt").exists() and list(files.glob("runs/mri/**/ckp*"))
    report = names["report"]
    assert names["y"].ne(0).float().mean().item() == pytest.approx(0.25, abs=0.15)
    assert len(report.digests) == 1 and report.table() in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*(non_blocking|progress bar)")
def test_measured_kspace_from_the_files_to_the_report(files, capsys):
    names = run("Measured k-space, of several coils")
    sample = names["slices"][0]
    assert sample["y"].shape == (2, 2, 48, 40) and sample["x"].shape == (1, 36, 36)
    assert "mask" in sample["params"]
    assert len(names["report"].digests) == 3
    assert names["report"].table() in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*(non_blocking|progress bar)")
def test_segy_from_the_files_to_the_report(files, capsys):
    names = run("SEG-Y files")
    assert names["dt"] == 2.0
    assert len(names["train"]) == 4 and len(names["test"]) == 1
    assert len(names["report"].digests) == 1
    assert names["report"].table() in capsys.readouterr().out
    assert names["reflectivity"].shape == names["recorded"].shape == (5, 1, 24, 16)
    assert names["reflectivity"].isfinite().all()


@pytest.mark.filterwarnings("ignore:.*(non_blocking|progress bar)")
def test_a_physics_of_ones_own(capsys):
    names = run("A physics of your own")
    physics, x = names["physics"], names["x"]
    assert physics.adjointness_test(x).abs() < 1e-2
    assert 0.1 < physics.compute_sqnorm(x) <= 1
    assert "worst case, 0.5 x noise" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*(non_blocking|tuple)")
def test_any_data_set(files):
    sample = run("Any deepinv dataset")["train"][1]
    assert sample["x"].shape == sample["y"].shape == (3, 64, 64)
    assert not torch.equal(sample["x"], sample["y"])
