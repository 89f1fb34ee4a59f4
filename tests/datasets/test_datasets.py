import pickle
import sys

import numpy as np
import pytest
import torch
from host_suite import host_module
from nilearn.datasets import load_mni152_template
from properties import assert_global_rng_untouched

import deepinv_jitter as dj
from deepinv_jitter.datasets.brain import _brain

PLANES = ("axial", "coronal", "sagittal")
FLAT = dict(dip=0, fold=0, pinch_out=0)
EARTH = dict(img_size=(64, 48), seed=3)
HEAD = dict(img_size=(40, 32), resolution=6)


def reflectivity(n=6, **kwargs):
    return dj.ReflectivityDataset(n, **(EARTH | kwargs))


def sections(n, **kwargs):
    dataset = dj.ReflectivityDataset(n, **kwargs)
    return torch.stack([sample["x"][0] for sample in dataset])


def brain(split="train", plane="axial", **kwargs):
    return dj.BrainSliceDataset(split, plane=plane, **(HEAD | kwargs))


def real_parts(dataset):
    return torch.stack([sample["x"][0] for sample in dataset])


# name: dataset, its length, the shape of x
DATASETS = {
    "point": (lambda: dj.PointDataset(7), 7, (2,)),
    "biased point": (lambda: dj.PointDataset(1, center=[0.005, 0]), 1, (2,)),
    "reflectivity": (reflectivity, 6, (1, 64, 48)),
    "odd section": (lambda: reflectivity(2, img_size=(33, 51)), 2, (1, 33, 51)),
    "brain": (lambda: brain(contrast=True, copies=2), 150, (2, 40, 32)),
    "test brain": (lambda: brain("test", "sagittal", flip=True), 7, (2, 40, 32)),
}


@pytest.fixture(params=DATASETS)
def case(request):
    make, length, shape = DATASETS[request.param]
    return make(), length, shape


@pytest.mark.filterwarnings(r"ignore:(non_blocking|Update progress):UserWarning")
def test_the_host_accepts_the_format(case):
    dataset, length, shape = case
    check = host_module("test_datasets").check_dataset_format
    check(dataset, length=length, dtype=dict, shape=shape)
    dataset.check_dataset()


def test_samples(case):
    dataset, length, shape = case
    with assert_global_rng_untouched():
        samples = list(dataset)
        again = [dataset[i] for i in reversed(range(length))][::-1]
        last = dataset[-1]
    assert len(samples) == length
    for sample, same in zip(samples, again, strict=True):
        assert list(sample) == ["x"]
        assert sample["x"].shape == shape and sample["x"].dtype == torch.float32
        assert torch.equal(sample["x"], same["x"])
    assert torch.equal(last["x"], samples[-1]["x"])
    assert torch.equal(dataset[np.int64(0)]["x"], samples[0]["x"])


def test_a_sample_belongs_to_the_caller(case):
    dataset, *_ = case
    x = dataset[0]["x"].clone()
    dataset[0]["x"].fill_(9)
    assert torch.equal(dataset[0]["x"], x)


def test_index_errors(case):
    dataset, length, _ = case
    for index in (length, -length - 1):
        with pytest.raises(IndexError, match=f"index must lie from {-length} to"):
            dataset[index]
    with pytest.raises(TypeError):
        dataset[:1]


def test_pickling(case):
    dataset, length, _ = case
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(copy) == length
    assert torch.equal(copy[length - 1]["x"], dataset[length - 1]["x"])


def test_loader_workers():
    dataset = reflectivity(4)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=2)
    x = torch.cat([batch["x"] for batch in loader])
    assert torch.equal(x, torch.stack([sample["x"] for sample in dataset]))


def test_points():
    assert dj.PointDataset(1)[0]["x"].tolist() == [0, 0]
    biased = dj.PointDataset(3, center=torch.tensor([0.005, 0]).tolist())
    assert torch.equal(biased[2]["x"], torch.tensor([0.005, 0]))


# Reflectivity


def test_sections_depend_on_seed_and_index_alone():
    first = sections(5, **EARTH)
    assert torch.equal(sections(3, **EARTH), first[:3])
    others = torch.cat([first, sections(5, **(EARTH | {"seed": 4}))]).flatten(1)
    assert len(torch.unique(others, dim=0)) == 10


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(img_size=(352, 352)),
        dict(img_size=(37, 150), thickness=30),
        dict(img_size=(2, 3), thickness=2),
        dict(img_size=(1, 1), thickness=1, fold=0, faults=0),
        dict(img_size=(64, 64), faults=9, throw=1),
    ],
)
def test_scale_of_sections(kwargs):
    x = sections(8, **kwargs)
    assert x.isfinite().all() and (x.abs().amax((1, 2)) == 1).all()


@pytest.mark.parametrize("thickness", [6, 12, 24])
@pytest.mark.parametrize("structure", [{}, dict(dip=0.3, fold=20, faults=6, throw=40)])
def test_sparsity_is_the_same_everywhere(thickness, structure):
    """A margin too small for dip, fold or throw would leave an edge of the section empty."""
    x = sections(150, img_size=(128, 64), thickness=thickness, pinch_out=0, **structure)
    layers = (x != 0).float()
    parts = [layers, layers[:, :16], layers[:, -16:], layers[..., :8], layers[..., -8:]]
    for part in parts:
        assert part.mean().item() == pytest.approx(1 / thickness, rel=0.15)


def test_traces_are_bernoulli_gaussian():
    trace = sections(1, img_size=(40000, 1), thickness=5, faults=0, **FLAT).flatten()
    t = trace.nonzero().flatten()
    gaps = t.diff().float()
    assert gaps.mean().item() == pytest.approx(5, rel=0.03)
    for gap in (1, 2, 7):
        share = (gaps == gap).float().mean().item()
        assert share == pytest.approx(0.2 * 0.8 ** (gap - 1), rel=0.15)
    a = trace[t]
    assert a.sign().mean().abs() < 0.03
    # 3 for a Gaussian, times 1.08 for its variation along the layers; 6 for a Laplacian
    kurtosis = a.pow(4).mean() / a.pow(2).mean() ** 2
    assert kurtosis.item() == pytest.approx(3.23, rel=0.1)


def continued(x):
    """Share of the interfaces found within one sample in the next trace, away from the edges."""
    layers = (x != 0).float()[:, None]
    near = torch.nn.functional.max_pool2d(layers, (3, 1), 1, (1, 0))
    here, onward = layers[:, :, 1:-1, :-1], near[:, :, 1:-1, 1:]
    return ((here * onward).sum() / here.sum()).item()


def test_layers_are_continuous():
    x = sections(20, img_size=(128, 128), faults=0, pinch_out=0)
    assert continued(x) == 1
    assert continued(sections(20, img_size=(128, 128), faults=0, pinch_out=1)) > 0.999
    assert 0.95 < continued(sections(20, img_size=(128, 128))) < 0.995
    assert continued(x[:, :, torch.randperm(128)]) < 0.8


def test_coefficients_vary_slowly_along_layers():
    x = sections(20, img_size=(96, 96), faults=0, **FLAT)
    assert ((x != 0).all(2) | (x == 0).all(2)).all()
    a = x[(x != 0).all(2)]
    assert (a.sign() == a.sign()[:, :1]).all()
    spread = a.abs().amax(1) / a.abs().amin(1)
    assert 1.2 < spread.max() <= 1.5 * 1.001
    assert (a.diff() / a[:, :1]).abs().max() < 0.02


def horizons(n, **kwargs):
    """Depth at each trace, in the sections that hold a single interface throughout."""
    x = sections(n, faults=0, pinch_out=0, **kwargs)
    layers = x[((x != 0).sum(1) == 1).all(1)]
    assert len(layers) > 20
    return (layers != 0).float().argmax(1)


@pytest.mark.parametrize("dip", [0.05, 0.3])
def test_dip_is_in_samples_per_trace(dip):
    t = horizons(150, img_size=(128, 101), thickness=90, dip=dip, fold=0)
    dips = (t[:, -1] - t[:, 0]) / 100
    assert dips.abs().max() <= dip + 0.01
    assert dips.max() > dip / 3 and dips.min() < -dip / 3


@pytest.mark.parametrize("fold", [4, 16])
def test_fold_is_in_samples(fold):
    t = horizons(150, img_size=(128, 101), thickness=90, dip=0, fold=fold)
    height = t.amax(1) - t.amin(1)
    assert fold / 2 < height.max() <= 2 * fold + 1
    # a slope of 0.5 at most, and the rounding
    assert (t[:, 8:] - t[:, :-8]).abs().max() <= 5


def test_pinch_outs_end_layers():
    kwargs = dict(img_size=(128, 256), dip=0, fold=0, faults=0)
    whole, pinched = (sections(20, pinch_out=p, **kwargs) for p in (0, 1))
    count = (whole != 0).sum(1)
    assert (count == count[:, :1]).all()
    count = (pinched != 0).sum(1)
    assert (count.amax(1) - count.amin(1)).float().mean() > 1
    # Every second layer stays whole, and no other crosses it or runs into it
    rows = (pinched != 0).all(2)
    assert 0.4 < rows.sum() / (whole != 0).all(2).sum() < 0.7
    a = pinched[rows]
    assert (a.diff() / a[:, :1]).abs().max() < 0.02


def test_faults_offset_all_layers_across_a_dipping_line():
    x = sections(40, img_size=(256, 256), faults=1, throw=24, thickness=8, **FLAT).numpy()
    t = np.arange(256)
    faulted, dips, wrapped = 0, set(), []
    for section in x:
        layers = section != 0
        whole = layers.all(1)
        left, right = layers[:, 0] & ~whole, layers[:, -1] & ~whole
        clean = (left ^ right) & (np.abs(np.diff(layers, axis=1)).sum(1) == 1)
        if clean.sum() < 20:
            continue
        faulted += 1
        # The first trace on the right-hand side of the fault, where a layer ends there
        first = np.where(left, layers.sum(1), 256 - layers.sum(1))
        slope, offset = np.polyfit(t[clean], first[clean], 1)
        line = slope * t + offset
        assert 0.19 < abs(slope) < 0.71
        assert np.abs(line - first)[clean].max() < 1.1
        dips.add(slope > 0)

        # The rock above is that on the right of a fault that dips to the right
        below, above = (left, right) if slope > 0 else (right, left)
        below, above = below | whole, above | whole
        inside = (line > 20) & (line < 236)
        shifts = range(25)
        match = [(below[: 256 - s] == above[s:])[inside[: 256 - s] & inside[s:]] for s in shifts]
        shift = int(np.argmax([m.mean() for m in match]))
        assert match[shift].all() and 8 <= shift <= 24
        if inside.all():
            wrapped.append((above[:shift] == below[256 - shift :]).all())

        # It slid along the fault: both sides of a layer meet it with the same coefficient
        for k in np.flatnonzero(clean[:-shift] & clean[shift:] & below[:-shift] & above[shift:]):
            i, j = (
                (first[k] - 1, first[k + shift]) if slope > 0 else (first[k], first[k + shift] - 1)
            )
            assert section[k + shift, j] == pytest.approx(section[k, i], rel=0.015)
    assert 10 <= faulted <= 30
    assert dips == {True, False}
    assert len(wrapped) > 3 and np.mean(wrapped) < 0.5


# Brain


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("spacing", [1, 3])
def test_training_and_test_slices_are_5_mm_apart(plane, spacing):
    train, test = (brain(s, plane, spacing=spacing).positions for s in ("train", "test"))
    assert len(train) > 2 * len(test) > 0
    assert (train[:, None] - test).abs().min() >= 5
    if plane == "sagittal":
        # position -p would be the mirror image of p
        assert min(train.min(), test.min()) >= 0
    for p, block in ((train, range(25)), (test, range(29, 36))):
        assert len(p.unique()) == len(p)
        assert set((p % 40).tolist()) <= set(block) and (p % spacing == 0).all()


@pytest.mark.parametrize("plane", PLANES)
def test_slices_show_the_template_in_radiological_view(plane):
    template = load_mni152_template(resolution=1)
    volume, origin = template.get_fdata(dtype=np.float32), template.affine[:3, 3]
    filled = np.nonzero(volume)
    volume = volume[tuple(slice(a.min(), a.max() + 1) for a in filled)]
    origin = [o + a.min() for o, a in zip(origin, filled)]
    # rows and columns of the picture, both counted against the axes: down from the front or the
    # top of the head, and from its right side or its front
    axis = "xyz".index({"axial": "z", "coronal": "y", "sagittal": "x"}[plane])
    columns, rows = (a for a in range(3) if a != axis)
    size = volume.shape[rows], volume.shape[columns]
    dataset = dj.BrainSliceDataset("test", plane=plane, img_size=size)
    for i in (0, len(dataset) - 1):
        section = volume.take(int(dataset.positions[i] - origin[axis]), axis)
        picture = torch.from_numpy(section[::-1, ::-1].T / section.max())
        assert torch.allclose(dataset[i]["x"][0], picture)
        assert not torch.allclose(dataset[i]["x"][0], picture.flip(0))


@pytest.mark.parametrize("plane", PLANES)
def test_slices_hold_enough_brain(plane):
    kwargs = dict(plane=plane, img_size=(192, 192), spacing=2)
    area = [
        (real_parts(brain(s, **kwargs, resolution=1)) > 0).sum((1, 2)) for s in ("train", "test")
    ]
    area = torch.cat(area).float()
    assert 0.28 < area.min() / area.max() < 0.5


@pytest.mark.parametrize(
    "size, resolution", [((192, 192), 1), ((96, 96), 2), ((320, 320), 0.6), ((49, 81), 4)]
)
@pytest.mark.parametrize("plane", PLANES)
def test_the_whole_brain_is_shown(plane, size, resolution):
    kwargs = dict(plane=plane, spacing=5)
    x = real_parts(brain("test", **kwargs, img_size=size, resolution=resolution))
    assert x.shape[1:] == size and (x.amax((1, 2)) == 1).all() and x.min() >= 0
    assert max(x[:, [0, -1]].max(), x[..., [0, -1]].max()) == 0
    reference = real_parts(brain("test", **kwargs, img_size=(250, 250), resolution=1))
    for dim in (1, 2):
        expected = extent(reference, dim)
        assert torch.allclose(extent(x, dim) * resolution, expected, rtol=0.03)


def extent(x, dim):
    """Standard deviation of the brain's mass along one dimension, in pixels."""
    mass = x.sum(3 - dim) / x.sum((1, 2))[:, None]
    i = torch.arange(x.shape[dim])
    return ((mass * i**2).sum(1) - (mass * i).sum(1) ** 2).sqrt()


def test_resampling_does_not_alias():
    fine = real_parts(brain("test", spacing=5, img_size=(192, 192), resolution=1))
    coarse = real_parts(brain("test", spacing=5, img_size=(24, 24), resolution=8))
    mean = torch.nn.functional.avg_pool2d(fine, 8)
    mean = mean / mean.amax((1, 2), keepdim=True)
    assert (coarse - mean).square().mean().sqrt() < 0.03


@pytest.mark.parametrize("plane", PLANES)
def test_cropping_and_padding_keep_the_centre(plane):
    full = real_parts(brain("test", plane, spacing=5, img_size=(192, 192), resolution=1))
    large = real_parts(brain("test", plane, spacing=5, img_size=(200, 322), resolution=1))
    assert torch.equal(large[:, 4:-4, 65:-65], full)
    assert large[:, :4].max() == large[..., :65].max() == 0
    small = real_parts(brain("test", plane, spacing=5, img_size=(64, 32), resolution=1))
    middle = full[:, 64:-64, 80:-80]
    assert torch.allclose(small, middle / middle.amax((1, 2), keepdim=True))


def test_the_imaginary_part_is_zero(case):
    dataset, _, shape = case
    if len(shape) == 3 and shape[0] == 2:
        assert all((sample["x"][1] == 0).all() for sample in dataset)


def test_contrast_is_a_power():
    plain, augmented = real_parts(brain()), real_parts(brain(contrast=True, copies=3))
    powers = []
    for x, z in zip(plain.repeat(3, 1, 1), augmented, strict=True):
        body = (x > 0.1) & (x < 0.9)
        power = z[body].log() / x[body].log()
        assert power.std() < 1e-3
        powers.append(power.mean())
    powers = torch.stack(powers)
    assert (powers.log().abs() <= torch.tensor(1.5).log() + 1e-3).all()
    assert powers.min() < 0.75 and powers.max() > 1.35
    assert len(powers.unique()) == len(powers)


@pytest.mark.parametrize("plane, axis", [("sagittal", -1), ("axial", -2), ("coronal", -2)])
def test_flip_mirrors_half_of_the_samples(plane, axis):
    plain = real_parts(brain(plane=plane)).repeat(2, 1, 1)
    augmented = real_parts(brain(plane=plane, flip=True, copies=2))
    same = (augmented == plain).all(2).all(1)
    assert torch.equal(augmented[~same], plain[~same].flip(axis))
    assert 0.3 < same.float().mean() < 0.7


def test_augmentation_follows_the_seed():
    kwargs = dict(plane="sagittal", flip=True, contrast=True, copies=2)
    first, again, other = (brain(**kwargs, seed=s) for s in (0, 0, 1))
    assert torch.equal(real_parts(first), real_parts(again))
    assert not torch.equal(real_parts(first), real_parts(other))
    assert torch.equal(first.positions, brain(plane="sagittal").positions.repeat(2))
    # and the contrast does not depend on whether slices are flipped
    unflipped = real_parts(brain(**(kwargs | {"flip": False})))
    assert torch.equal(real_parts(first).flatten(1).sort(1)[0], unflipped.flatten(1).sort(1)[0])


def test_nilearn_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    _brain.cache_clear()
    with pytest.raises(ImportError, match=r'pip install "deepinv_jitter\[examples\]"'):
        brain()


# fastMRI


# Bad input


ERRORS = [
    (dj.PointDataset, dict(length=0), ValueError, "length must be .* from 1 to .* got 0"),
    (dj.PointDataset, dict(length=2.0), TypeError, "length must be a whole number, got 2.0"),
    (dj.PointDataset, dict(length=True), TypeError, "length must be a whole number"),
    (dj.PointDataset, dict(length=1, center=0), ValueError, "center must hold two numbers, got 1"),
    (dj.PointDataset, dict(length=1, center=(0, 0, 0)), ValueError, "two numbers, got 3"),
    (dj.PointDataset, dict(length=1, center="ab"), TypeError, "center must be a number"),
    (dj.PointDataset, dict(length=1, center=(0, np.nan)), ValueError, "center must be finite"),
    (dj.PointDataset, dict(length=1, center=(0, 1e39)), ValueError, "center must .* lie"),
    (dj.PointDataset, dict(length=2**63), ValueError, "length must be .* lie from 1 to"),
    (reflectivity, dict(n=0), ValueError, "length must be .* from 1"),
    (reflectivity, dict(img_size=64), TypeError, "img_size must be made of whole numbers, got 64"),
    (reflectivity, dict(img_size=(1, 64, 64)), ValueError, "img_size must hold 2"),
    (reflectivity, dict(img_size=(64, 0)), ValueError, "img_size must be .* at least 1"),
    (reflectivity, dict(img_size=(64, 6.5)), TypeError, "img_size must be a whole number"),
    (reflectivity, dict(seed=-1), ValueError, "seed must be .* at least 0"),
    (reflectivity, dict(seed=None), TypeError, "seed must be a whole number, got None"),
    (reflectivity, dict(thickness=0.5), ValueError, "thickness .* from 1 to 64, got 0.5"),
    (reflectivity, dict(thickness=65), ValueError, "thickness .* from 1 to 64, got 65"),
    (reflectivity, dict(dip=-0.1), ValueError, "dip must be .* at least 0"),
    (reflectivity, dict(fold="8"), TypeError, "fold must be a number, got '8'"),
    (reflectivity, dict(pinch_out=1.1), ValueError, "pinch_out .* from 0 to 1"),
    (reflectivity, dict(faults=1.5), TypeError, "faults must be a whole number"),
    (reflectivity, dict(throw=0), ValueError, "throw .* from 1 to"),
    (reflectivity, dict(fold=200), ValueError, "dip and fold .* less than 136 .* reduce"),
    (reflectivity, dict(throw=1e8), ValueError, "must not exceed .* reduce img_size"),
    (reflectivity, dict(faults=10**400), ValueError, "faults must .* lie from 0 to"),
    (reflectivity, dict(dip=np.inf), ValueError, "dip must be finite"),
    (dj.IndexedDataset, dict(dataset=3), TypeError, "a length and items, got int"),
    (reflectivity, dict(dips=0.1), TypeError, "unexpected keyword argument 'dips'"),
    (brain, dict(split="val"), ValueError, r"split must be one of \('train', 'test'\), got 'val'"),
    (brain, dict(split=["test"]), ValueError, "split must be one of"),
    (brain, dict(plane="oblique"), ValueError, "plane must be one of .* got 'oblique'"),
    (brain, dict(resolution=0), ValueError, "resolution must be .* from 0.1 to 10"),
    (brain, dict(spacing=0.5), TypeError, "spacing must be a whole number"),
    (brain, dict(split="test", spacing=40), ValueError, "spacing must leave a test slice, 40 mm"),
    (brain, dict(copies=0), ValueError, "copies must be .* at least 1"),
    (brain, dict(seed=-3), ValueError, "seed must be .* at least 0"),
    (brain, dict(img_size=(64,)), ValueError, "img_size must hold 2"),
]


def test_one_index_for_each_sample():
    dataset = dj.IndexedDataset(dj.PointDataset(5))
    assert [dataset[i]["index"] for i in (0, 4, -1, np.int64(2))] == [0, 4, 4, 2]
    with pytest.raises(IndexError, match="index must lie from -5 to 4, got 5"):
        dataset[5]


@pytest.mark.parametrize("make, kwargs, error, match", ERRORS)
def test_bad_input_is_refused(make, kwargs, error, match):
    with pytest.raises(error, match=match):
        make(**kwargs)


# What is no sample and no index


@pytest.mark.parametrize("index", ["0", 1.0, slice(0, 2), [0, 1], None])
def test_what_is_no_index_is_refused(index):
    for dataset in (dj.PointDataset(4), reflectivity(), dj.IndexedDataset([X, X])):
        with pytest.raises(TypeError, match="index must be a whole number, got .*Subs"):
            dataset[index]


X = torch.ones(1, 4, 4)


@pytest.mark.parametrize("dataset", [{"x": X}, "abc", None, iter([X])])
def test_what_is_no_data_set_is_refused(dataset):
    with pytest.raises(TypeError, match=r"dataset must .*TensorDataset\(x=x, y=y\)"):
        dj.IndexedDataset(dataset)


@pytest.mark.parametrize("sample", ["abc", 3, None])
def test_what_is_no_sample_is_refused(sample):
    with pytest.raises(TypeError, match=r"samples must be in one of deepinv's formats"):
        dj.IndexedDataset([sample])[0]


@pytest.mark.parametrize(
    "center", [torch.tensor([0.5, 1]), np.array([0.5, 1]), (np.float32(0.5), 1)]
)
def test_points_from_arrays(center):
    assert dj.PointDataset(3, center=center)[2]["x"].tolist() == [0.5, 1]
