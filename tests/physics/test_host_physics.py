"""deepinv's own physics tests, run on our operators and mask generator."""

from __future__ import annotations

import deepinv as dinv
import pytest
import torch
from host_suite import host_module

import deepinv_jitter as dj


def seismic(imsize, device):
    # long enough for the host's tolerance of 0.01 on the squared norm
    imsize = imsize or (1, 256, 3)
    physics = dj.SeismicConvolution(img_size=imsize, device=device)
    return physics, imsize, ["wavelet"]


def short_seismic(imsize, device):
    imsize = imsize or (1, 13, 4)
    physics = dj.SeismicConvolution(
        dj.ricker(7, 1.0).flip(0) + 0.1 * torch.arange(7), img_size=imsize, device=device
    )
    return physics, imsize, ["wavelet"]


def mri(imsize, device):
    imsize = imsize or (2, 17, 8)
    mask = (torch.arange(imsize[-1]) % 3 != 1).float()
    physics = dj.SingleCoilMRI(mask, img_size=imsize, device=device)
    return physics, imsize, ["mask"]


OPERATORS = {"seismic": seismic, "short_seismic": short_seismic, "SingleMRI": mri}

# Host test -> the parametrisations it is run with
FAMILIES = {
    "test_operators_adjointness": [{}],
    "test_adjointness_test": [{"num_samples": 1}, {"num_samples": 3}],
    "test_operators_norm": [{"verbose": True}, {"verbose": False}],
    "test_pseudo_inverse": [
        {"implicit_backward_solver": True},
        {"implicit_backward_solver": False},
    ],
    "test_decomposable": [{}],
    "test_concatenation": [{}],
    "test_operators_differentiability": [{}],
    "test_physics_state_dict": [{}],
    "test_adjoint_autograd": [{}],
    "test_clone": [{}],
    "test_device_consistency": [{}],
    "test_operator_cropper": [{}],
    "test_operator_multiscale_wrapper": [{}],
    "test_multiscale_coarse_adjointness": [{}],
    "test_multiscale_A_adjoint_A": [{}],
}
# Our short operator is there for its odd sizes: its norm is far below the unit of long traces.
# The host's multiscale tests force three channels unless the name says MRI.
NOT_APPLICABLE = {
    ("test_operators_norm", "short_seismic"),
    ("test_multiscale_coarse_adjointness", "seismic"),
    ("test_multiscale_coarse_adjointness", "short_seismic"),
    ("test_multiscale_A_adjoint_A", "seismic"),
    ("test_multiscale_A_adjoint_A", "short_seismic"),
}
CASES = [
    pytest.param(test, name, arguments, id="-".join([test, name, *map(str, arguments.values())]))
    for test, settings in FAMILIES.items()
    for arguments in settings
    for name in OPERATORS
    if (test, name) not in NOT_APPLICABLE
]


@pytest.fixture
def host(monkeypatch, tmp_path):
    module = host_module("test_physics")

    def find_operator(name, device, imsize=None, get_physics_param=False):
        physics, imsize, params = OPERATORS[name](imsize, device)
        found = (physics, imsize, 1.0, torch.float)
        return (*found, params) if get_physics_param else found

    monkeypatch.setattr(module, "find_operator", find_operator)
    monkeypatch.setattr(module, "OPERATORS", list(OPERATORS))
    monkeypatch.chdir(tmp_path)  # test_physics_state_dict writes into the current folder
    torch.manual_seed(0)
    return module


@pytest.mark.parametrize("test, name, arguments", CASES)
def test_host(host, test, name, arguments, device):
    function = getattr(host, test)
    wanted = function.__code__.co_varnames[: function.__code__.co_argcount]
    fixtures = {"name": name, "device": device, "rng": torch.Generator(device).manual_seed(0)}
    used = {key: value for key, value in fixtures.items() if key in wanted}
    function(**used, **arguments)


@pytest.mark.parametrize("test", ["test_MRI", "test_MRI_noise_domain"])
def test_host_mri(host, monkeypatch, test, device):
    # the host branches on `mri is MRI`
    monkeypatch.setattr(host, "MRI", dj.SingleCoilMRI)
    rng = torch.Generator(device).manual_seed(0)
    getattr(host, test)(dj.SingleCoilMRI, (1, 2, 3, 16, 16), device, rng)


@pytest.mark.parametrize("center_fraction", [0.04, 24 / 512])
@pytest.mark.parametrize("acceleration", [4, 10, 12])
@pytest.mark.parametrize("img_size", [(256, 512), (2, 256, 512), (64, 64)])
@pytest.mark.parametrize("kind", ["random", "equispaced"])
def test_host_mri_generator(monkeypatch, kind, img_size, acceleration, center_fraction, device):
    module = host_module("test_generators")

    def choose(name, img_size, acc, center_fraction, device, rng):
        generator = dj.FastMRIMaskGenerator(
            img_size,
            acceleration=acc,
            center_fraction=center_fraction,
            kind=kind,
            rng=rng,
            device=device,
        )
        # the host's names for the acceleration and the number of other columns
        generator.acc = acc
        generator.n_lines = img_size[-1] // acc - generator.n_center
        return generator

    monkeypatch.setattr(module, "choose_mri_generator", choose)
    rng = torch.Generator(device).manual_seed(0)
    # "uniform" is the host's name for masks that may come out the same twice
    name = "uniform" if kind == "equispaced" else kind
    module.test_mri_generator(name, img_size, 2, acceleration, center_fraction, device, rng)


def test_host_slice_transform():
    # the host draws the masks of its fastMRI dataset with batch_size=0 and a file name as the seed
    generator = dj.FastMRIMaskGenerator((320, 320), seed=0)
    transform = dinv.datasets.MRISliceTransform(mask_generator=generator)
    kspace = torch.ones(2, 40, 80)
    masks = [transform.generate_mask(kspace, seed) for seed in ("a.h5", "a.h5", "b.h5")]
    assert masks[0].shape == (1, 40, 80)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert transform.get_acs() == round(0.08 * 80)
