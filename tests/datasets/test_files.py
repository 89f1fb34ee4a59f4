"""Files written in their formats are read right, and broken ones named."""

import contextlib
import io
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import deepinv
import h5py
import numpy as np
import pytest
import segyio
import torch
from host_suite import host_module

import deepinv_jitter as dj

IMAGE, NAN = "reconstruction_esc", float("nan")


def write_volume(path, target="reconstruction_esc", slices=4, coils=(), size=(20, 28)):
    """A small file in the layout of fastMRI; returns its images."""
    rng = np.random.default_rng(len(path.name))
    images = rng.random((slices, *size)).astype(np.float32) + 1
    kspace = rng.standard_normal((slices, *coils, 40, 36)).astype(np.complex64)
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = "<ismrmrdHeader></ismrmrdHeader>"
        if target is not None:
            file[target] = images
        file.attrs.update(max=images.max(), norm=np.linalg.norm(images))
        file.attrs.update(acquisition="CORPD_FBK", patient_id=path.stem)
    return torch.from_numpy(images)


@pytest.fixture
def volumes(tmp_path):
    folder = tmp_path / "singlecoil_val"
    folder.mkdir()
    names = ("a.h5", "bb.h5")
    return folder, torch.cat([write_volume(folder / name) for name in names])


PADDED = pytest.mark.filterwarnings("ignore:img_size=.* is larger:UserWarning")


@PADDED
@pytest.mark.filterwarnings(r"ignore:(non_blocking|Update progress):UserWarning")
def test_fastmri_slices_are_the_images_of_the_files(volumes):
    folder, images = volumes
    dataset = dj.fastmri_slices(folder, img_size=(24, 24))
    host_module("test_datasets").check_dataset_format(dataset, 8, dict, (2, 24, 24))
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    expected = torch.zeros(8, 2, 24, 24)
    expected[:, 0, 2:-2] = ((images - low) / (high - low))[..., 2:-2]
    assert torch.allclose(torch.stack([sample["x"] for sample in dataset]), expected, atol=1e-6)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3]["x"], dataset[3]["x"])


@PADDED
def test_fastmri_multicoil_volumes_of_several_sizes(tmp_path):
    write_volume(tmp_path / "a.h5", "reconstruction_rss", coils=(3,))
    write_volume(tmp_path / "b.h5", "reconstruction_rss", coils=(5,), size=(30, 18))
    dataset = dj.fastmri_slices(str(tmp_path), slice_index="middle")
    assert len(dataset) == 2
    for sample in dataset:
        x = sample["x"]
        assert x.shape == (2, 320, 320) and x.dtype == torch.float32
        assert x[0].min() == 0 and x[0].max() == 1 and (x[1] == 0).all()


def test_fastmri_slices_can_be_kept(volumes, tmp_path):
    folder, _ = volumes
    path = tmp_path / "new" / "slices.pt"
    dataset = dj.fastmri_slices(folder, save_path=path, img_size=(16, 16), slice_index=(1, 2))
    loaded = deepinv.datasets.SimpleFastMRISliceDataset(
        path.parent, file_name=path.name, use_dict_output=True
    )
    assert len(dataset) == len(loaded) == 4
    assert torch.equal(dataset[3]["x"], loaded[3]["x"])


def test_fastmri_errors(volumes, tmp_path):
    folder, _ = volumes
    with pytest.raises(FileNotFoundError, match="root must be a folder.*got .*nowhere"):
        dj.fastmri_slices(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="root must hold .* found none in"):
        dj.fastmri_slices(tmp_path)
    with pytest.raises(IsADirectoryError, match="save_path must be a file, got the f"):
        dj.fastmri_slices(folder, save_path=tmp_path)
    before = (folder / "a.h5").read_bytes()
    with pytest.raises(ValueError, match="save_path must be none of the volumes, got"):
        dj.fastmri_slices(folder, save_path=folder / ".." / folder.name / "a.h5")
    assert (folder / "a.h5").read_bytes() == before


def test_fastmri_a_folder_without_volumes_is_described(tmp_path):
    for content, there in (
        ((), "nothing"),
        (("singlecoil_train/",), "singlecoil_train/"),
        (("a.npy", "b.npy"), "a.npy, b.npy"),
        (("a.H5", "b.hdf5", "c.tar.gz", "d.txt"), r"a.H5, b.hdf5, c.tar.gz, \.\.\."),
    ):
        folder = tmp_path / str(len(content))
        folder.mkdir()
        for name in content:
            path = folder / name
            path.mkdir() if name.endswith("/") else path.touch()
        message = f"found none in .*{folder.name}, which holds {there}"
        with pytest.raises(FileNotFoundError, match=message):
            dj.fastmri_slices(folder)


def test_what_was_kept_stays_when_reading_fails(volumes, tmp_path):
    folder, _ = volumes
    kept = tmp_path / "slices.pt"
    kept.write_text("earlier")
    spoiled(IMAGE, NAN)(folder / "bb.h5")
    with pytest.raises(ValueError, match="images must be finite"):
        dj.fastmri_slices(folder, save_path=kept, img_size=(9, 9))
    assert kept.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir() if p != folder] == ["slices.pt"]


HOLD = """
import sys, h5py
file = h5py.File(sys.argv[1], sys.argv[2], libver=sys.argv[3])
if sys.argv[3] == "latest":
    file.swmr_mode = True
print("open", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    "mode, libver, message",
    [
        ("r+", "earliest", "lock file.*: another program has it .*_FILE_LOCKING=FALSE"),
        ("w", "latest", "already open for write.*: close it .* run h5clear -s"),
    ],
)
def test_fastmri_files_that_are_open_elsewhere(volumes, mode, libver, message):
    folder, _ = volumes
    path = folder / ("a.h5" if mode == "r+" else "c.h5")
    command = [sys.executable, "-c", HOLD, str(path), mode, libver]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(BlockingIOError, match=f"must be free to be read, .*{message}"):
            dj.fastmri_slices(folder)
        process.stdin.close()
    if mode == "r+":
        assert len(dj.fastmri_slices(folder, img_size=(9, 9))) == 8


@contextlib.contextmanager
def forbidden(path):
    """What one may not do to a path, as a user who is not root."""
    mode, user = path.stat().st_mode, os.geteuid()
    path.chmod(0o555 if path.name == "full" else 0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(mode)


@pytest.mark.skipif(os.name == "nt", reason="permissions of Unix")
def test_what_may_not_be_read_or_written_is_no_wrong_file():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "volumes").mkdir()
        (folder / "full").mkdir()
        file, line = folder / "volumes" / "a.h5", folder / "line.sgy"
        write_volume(file)
        segyio.tools.from_array2D(str(line), np.ones((4, 6), np.float32))
        with forbidden(folder / "volumes"), pytest.raises(PermissionError):
            dj.fastmri_slices(folder / "volumes")
        with (
            forbidden(file),
            pytest.raises(PermissionError, match="must be readable, .*a.h5 .*ask for the right"),
        ):
            dj.fastmri_slices(folder / "volumes")
        with forbidden(line), pytest.raises(PermissionError, match="line.sgy"):
            dj.segy_sections(line)
        # Before anything is read, as the broken slices show
        spoiled(IMAGE, NAN)(file)
        with forbidden(folder / "full"), pytest.raises(PermissionError):
            dj.fastmri_slices(
                folder / "volumes", img_size=(9, 9), save_path=folder / "full" / "s.pt"
            )


def changed(path, **values):
    """Other contents for some of the names; None for nothing under that name."""
    with h5py.File(path, "r+") as file:
        for name, value in values.items():
            del file[name]
            if value is not None:
                file[name] = value


def spoiled(name, value):
    """A function that puts one value into slice 2."""

    def spoil(path):
        with h5py.File(path, "r+") as file:
            file[name][2, 3, 4] = value

    return spoil


UNREADABLE = r"every .h5 file must be a fastMRI volume, .*c.h5 cannot be read \(.+\): download"

WRONG_IMAGE = r"images must be real, of shape \(slices, H, W\), .*c.h5 holds "

BROKEN = {  # what happened to a file, and what the error says
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-5000]), UNREADABLE),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:100]), UNREADABLE),
    "empty": (lambda p: p.write_bytes(b""), UNREADABLE),
    "no HDF5": (lambda p: p.write_bytes(b"broken" * 1000), UNREADABLE),
    "no names": (lambda p: h5py.File(p, "w").close(), r"must hold reconstr.* holds \[\]"),
    "no image": (
        lambda p: changed(p, reconstruction_esc=None),
        "must hold reconstruction_esc or .*c.h5 holds .*kspace.*train or val files",
    ),
    "scalar image": (
        lambda p: changed(p, reconstruction_esc=1.0),
        WRONG_IMAGE + r"\(\) of float64",
    ),
    "no slices": (
        lambda p: changed(p, reconstruction_esc=np.ones((0, 9, 9), np.float32)),
        WRONG_IMAGE + r"\(0, 9, 9\)",
    ),
    "complex image": (
        lambda p: changed(p, reconstruction_esc=np.ones((4, 9, 9), np.complex64)),
        WRONG_IMAGE + r"\(4, 9, 9\) of complex64",
    ),
    "2-D image": (
        lambda p: changed(p, reconstruction_esc=np.ones((9, 9), np.float32)),
        WRONG_IMAGE + r"\(9, 9\) of float32",
    ),
    "NaN": (spoiled(IMAGE, NAN), "images must be finite, .* slice 2 of .*c.h5: t"),
    "Inf": (spoiled(IMAGE, -np.inf), "images must be finite, .* slice 2"),
}


def damaged_chunk(path):
    """Compressed contents that cannot be read, under names and sizes that can."""
    with h5py.File(path, "r+") as file:
        values = file[IMAGE][:]
        del file[IMAGE]
        data = file.create_dataset(IMAGE, data=values, chunks=(1, 20, 28), compression="gzip")
        offset = data.id.get_chunk_info(2).byte_offset
    with open(path, "r+b") as file:
        file.seek(offset + 10)
        file.write(b"\xff" * 50)


def a_folder(path):
    path.unlink()
    path.mkdir()


BROKEN["damaged within"] = damaged_chunk, UNREADABLE
BROKEN["folder"] = (a_folder, r"c.h5 cannot be read \((.|\n)+\): it is a folder, take it")


@pytest.mark.parametrize("case", BROKEN)
def test_fastmri_files_refused(volumes, case):
    folder, _ = volumes
    damage, message = BROKEN[case]
    write_volume(folder / "c.h5")
    damage(folder / "c.h5")
    with pytest.raises(ValueError, match=message):
        dj.fastmri_slices(folder, img_size=(9, 9))


def test_fastmri_slices_that_are_not_asked_for_may_be_broken(volumes):
    folder, _ = volumes
    spoiled(IMAGE, NAN)(folder / "a.h5")
    assert len(dj.fastmri_slices(folder, slice_index=(0, -1), img_size=(9, 9))) == 4


@pytest.mark.parametrize(
    "index, count",
    [
        (np.int64(1), 1),
        (np.array([0, 3]), 2),
        ((np.int32(0), np.int64(-1)), 2),
        (torch.tensor(2), 1),
        (torch.tensor([1, 2]), 2),
        (range(3), 3),
        ((i for i in (0, 2)), 2),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_fastmri_whole_numbers_of_any_kind_are_indices(volumes, index, count):
    folder, images = volumes
    dataset = dj.fastmri_slices(folder, slice_index=index, img_size=(20, 28))
    assert len(dataset) == 2 * count


def test_fastmri_images_of_any_type_are_read(volumes):
    folder, _ = volumes
    values = np.arange(4 * 8 * 9).reshape(4, 8, 9) % 251
    for dtype in (np.uint8, np.int16, np.float16, np.float64, ">f4"):
        changed(folder / "a.h5", reconstruction_esc=values.astype(dtype))
        x = dj.fastmri_slices(folder, slice_index=0, img_size=(8, 9))[0]["x"]
        expected = torch.from_numpy(values[0].astype(np.float32))
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        assert x.dtype == torch.float32 and torch.allclose(x[0], expected)


def test_fastmri_padding_is_said(volumes):
    folder, _ = volumes
    write_volume(folder / "c.h5", size=(30, 40))
    for size in ((21, 28), (20, 29), (320, 320)):
        count = 3 if size == (320, 320) else 2
        message = rf"larger than the images in {count} of 3 files, .*a.h5 with \(20, 28"
        with pytest.warns(UserWarning, match=message) as record:
            dj.fastmri_slices(folder, img_size=size)
        assert len(record) == 1 and record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dj.fastmri_slices(folder, img_size=(20, 28))


def test_fastmri_range_is_declared(volumes):
    assert dj.fastmri_slices(volumes[0], img_size=(9, 9)).peak == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


READERS = {
    "fastMRI": lambda folder, **k: dj.fastmri_slices(folder, img_size=(9, 9), **k),
    "SEG-Y": lambda folder, **k: dj.segy_sections(
        folder / "line.sgy", img_size=(6, 4), direction="trace", **k
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_bars_are_labelled_and_in_terminals_only(volumes, reader, monkeypatch, capfd):
    folder, _ = volumes
    segyio.tools.from_array2D(str(folder / "line.sgy"), np.ones((4, 6), np.float32))
    read = READERS[reader]
    read(folder)
    assert capfd.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    read(folder, verbose=False)
    assert terminal.getvalue() == ""
    read(folder)
    bars = [line for line in terminal.getvalue().split("\r") if line.strip()]
    label = "fastMRI files, " if reader == "fastMRI" else "line.sgy, read"
    assert bars and all(line.startswith(label) for line in bars)


@pytest.mark.parametrize(
    "slice_index, error, message",
    [
        ("first", ValueError, "slice_index must be 'all', 'middle', .* got 'first'"),
        ("middle+x", ValueError, "slice_index must be 'all', 'middle', .* got 'middle"),
        ("random", ValueError, "slice_index must be 'all', 'middle', .* got 'random'"),
        ("middle+2", ValueError, "slices of every volume, got 'middle.2', but .* has 4"),
        (4, ValueError, "slices of every volume, got 4, but .*a.h5 has 4"),
        (-5, ValueError, "slices of every volume, got -5, but"),
        ((0, 9), ValueError, r"slices of every volume, got \(0, 9\), but"),
        ((), ValueError, r"slices of every volume, got \(\), but"),
        (1.0, TypeError, "slice_index must be a whole number, got 1.0"),
        ((0, True), TypeError, "slice_index must be a whole number, got True"),
        (None, TypeError, "slice_index must be a whole number, got None"),
    ],
)
def test_fastmri_slice_index_refused(volumes, slice_index, error, message):
    with pytest.raises(error, match=message):
        dj.fastmri_slices(volumes[0], slice_index=slice_index)


@pytest.fixture
def cube(tmp_path):
    """A volume of 3 inlines, 5 crosslines and 7 samples, and its file."""
    values = np.arange(1, 106, dtype=np.float32).reshape(3, 5, 7)
    segyio.tools.from_array3D(str(tmp_path / "cube.sgy"), values)
    return torch.from_numpy(values), tmp_path / "cube.sgy"


@pytest.mark.parametrize(
    "direction, lines",
    [
        ("inline", lambda v: v),
        ("crossline", lambda v: v.transpose(0, 1)),
        ("trace", lambda v: v.reshape(1, 15, 7)),
    ],
)
@pytest.mark.parametrize("size", [(7, 3), (2, 2), (3, 1)])
def test_segy_sections_tile_the_lines(cube, direction, lines, size):
    values, path = cube
    sections = dj.segy_sections(path, img_size=size, direction=direction)
    expected = [
        line.T[i : i + size[0], j : j + size[1]]
        for line in lines(values)
        for i in range(0, 7 - size[0] + 1, size[0])
        for j in range(0, len(line) - size[1] + 1, size[1])
    ]
    assert sections.dtype == torch.float32
    assert sections.shape == (len(expected), 1, *size)
    for section, window in zip(sections[:, 0], expected, strict=True):
        torch.testing.assert_close(section, window / window.abs().max())


def test_segy_dead_traces_stay_zero(tmp_path):
    segyio.tools.from_array2D(str(tmp_path / "dead.sgy"), np.zeros((4, 6), np.float32))
    sections = dj.segy_sections(tmp_path / "dead.sgy", img_size=(6, 4), direction="trace")
    assert torch.equal(sections, torch.zeros(1, 1, 6, 4))


CODES = {1: 4, 2: 4, 3: 2, 5: 4, 6: 8, 8: 1, 9: 8, 10: 4, 11: 2, 12: 8, 16: 1}


def write_segy(path, values, code=1, endian="big", offsets=1):
    """Inlines by crosslines by samples; one more offset adds 100."""
    spec = segyio.spec()
    spec.format, spec.endian, spec.sorting = code, endian, 2
    spec.ilines, spec.xlines, spec.samples = (np.arange(n) + 1 for n in values.shape)
    spec.offsets = np.arange(offsets) + 1
    with segyio.create(str(path), spec) as file:
        file.bin.update(tsort=2, hdt=4000)
        traces = ((i, x, o) for i, x in np.ndindex(values.shape[:2]) for o in range(offsets))
        for n, (i, x, o) in enumerate(traces):
            file.header[n] = {
                segyio.su.iline: i + 1,
                segyio.su.xline: x + 1,
                segyio.su.offset: o + 1,
                segyio.su.ns: values.shape[2],
            }
            file.trace[n] = (values[i, x] + 100 * o).astype(file.dtype)


@pytest.mark.parametrize("endian", ["big", "little"])
@pytest.mark.parametrize("code", CODES)
def test_segy_samples_of_every_format_and_byte_order(tmp_path, code, endian):
    values = np.arange(1, 106, dtype=np.float32).reshape(3, 5, 7)
    path = tmp_path / "cube.sgy"
    write_segy(path, values, code, endian)
    assert path.stat().st_size == 3600 + 15 * (240 + 7 * CODES[code])
    expected = torch.from_numpy(values).mT[:, None] / torch.tensor([35.0, 70, 105]).reshape(
        3, 1, 1, 1
    )
    torch.testing.assert_close(dj.segy_sections(path, img_size=(7, 5)), expected)
    sections = dj.segy_sections(path, img_size=(7, 15), direction="trace")
    torch.testing.assert_close(sections[0, 0], torch.from_numpy(values).reshape(15, 7).T / 105)


@pytest.mark.parametrize("direction", ["inline", "crossline"])
def test_segy_offsets_are_not_left_out(tmp_path, direction):
    path = tmp_path / "gathers.sgy"
    write_segy(path, np.ones((3, 5, 7), np.float32), offsets=4)
    with pytest.raises(ValueError, match="needs a post-stack file, .* has 4 offsets"):
        dj.segy_sections(path, img_size=(7, 3), direction=direction)
    sections = dj.segy_sections(path, img_size=(7, 60), direction="trace")
    assert sections[0, 0, 0].unique(return_counts=True)[1].tolist() == [15] * 4


def segy_refused(folder):
    line = str(folder / "line.sgy")
    segyio.tools.from_array2D(line, np.ones((4, 6), np.float32))
    broken = str(folder / "broken.sgy")
    segyio.tools.from_array2D(broken, np.full((4, 6), np.nan, np.float32))
    unsorted = str(folder / "unsorted.sgy")
    segyio.tools.from_array2D(unsorted, np.ones((4, 6), np.float32))
    with segyio.open(unsorted, "r+", ignore_geometry=True) as file:
        for header in file.header:
            header.update({segyio.su.iline: 0, segyio.su.xline: 0})
    (folder / "text.sgy").write_text("no seismic data")
    (folder / "empty.sgy").write_bytes(b"")
    content = (folder / "line.sgy").read_bytes()
    (folder / "short.sgy").write_bytes(content[:-10])
    (folder / "headers.sgy").write_bytes(content[:3600])
    (folder / "format.sgy").write_bytes(content[:3224] + b"\0\4" + content[3226:])
    np.save(folder / "array.npy", np.ones((4, 6)))
    one = dict(img_size=(6, 4), direction="trace")
    return {
        "size": (line, one | {"img_size": (6, 5)}, ValueError, "must fit into the file"),
        "finite": (broken, one, ValueError, "sections must be finite"),
        "no SEG-Y": (folder / "text.sgy", one, ValueError, "must be a SEG-Y file"),
        "empty": (folder / "empty.sgy", one, ValueError, "must be a SEG-Y file"),
        "truncated": (
            folder / "short.sgy",
            one,
            ValueError,
            r"must be a SEG-Y file with whole traces .* is none \(.*\): download it or",
        ),
        "no traces": (folder / "headers.sgy", one, ValueError, "must be .*whole traces"),
        "array": (
            folder / "array.npy",
            one,
            ValueError,
            "names no known format of its samples in bytes 3225 and 3226",
        ),
        "format": (
            folder / "format.sgy",
            one,
            ValueError,
            r"bytes 3225 and 3226, but 4, not one of \[1, 2, .*: correct that header",
        ),
        "geometry": (unsorted, {"img_size": (6, 4)}, ValueError, "use direction='trace'"),
        "direction": (line, {"direction": "up"}, ValueError, "direction must be one"),
        "folder": (folder, one, FileNotFoundError, "must be a SEG-Y file"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "size",
        "finite",
        "no SEG-Y",
        "empty",
        "truncated",
        "no traces",
        "array",
        "format",
        "geometry",
        "direction",
        "folder",
    ],
)
def test_segy_refused(tmp_path, case):
    path, options, error, message = segy_refused(tmp_path)[case]
    with pytest.raises(error, match=message):
        dj.segy_sections(path, **options)


def test_segy_without_the_reader(tmp_path, monkeypatch):
    (tmp_path / "any.sgy").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "segyio", None)
    with pytest.raises(ImportError, match="needs segyio, which is not installed"):
        dj.segy_sections(tmp_path / "any.sgy")
