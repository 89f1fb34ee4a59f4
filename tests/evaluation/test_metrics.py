import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from deepinv_jitter.evaluation.metrics import PaperPSNR, PaperSSIM


def test_psnr_by_hand():
    """Errors 0.5 and 0.1 in the real channel; 9 of the imaginary one does not count."""
    x = torch.zeros(1, 2, 1, 2)
    x_net = torch.tensor([[[[0.5, 0.1]], [[9.0, 9.0]]]])
    expected = -10 * math.log10((0.25 + 0.01) / 2)
    assert PaperPSNR()(x_net, x).item() == pytest.approx(expected, abs=1e-5)


def test_points_of_two_coordinates_are_no_complex_images():
    value = PaperPSNR()(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2))
    assert value.item() == pytest.approx(-10 * math.log10(0.5))


@pytest.mark.parametrize(
    "x_net, x, squared",
    [
        (1.5, 1.0, 0.0),  # above 1
        (-0.5, 0.0, 0.0),  # below 0
        (0.5, -0.3, 0.25),  # the truth is cut as well
        (-0.5, 0.4, 0.16),
        (2.0, 0.0, 1.0),
    ],
)
def test_psnr_cuts_both_images(x_net, x, squared):
    value = PaperPSNR()(torch.full((1, 1, 4, 4), x_net), torch.full((1, 1, 4, 4), x))
    expected = -10 * math.log10(squared) if squared else math.inf
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_psnr_of_each_image_and_of_complex_tensors():
    x = torch.zeros(2, 2, 8, 8)
    x_net = x + torch.tensor([0.1, 0.01]).reshape(2, 1, 1, 1)
    expected = torch.tensor([20.0, 40.0])
    as_complex = [torch.complex(v[:, :1], v[:, 1:]) for v in (x_net, x)]
    for pair in ((x_net, x), as_complex):
        assert torch.allclose(PaperPSNR()(*pair), expected, atol=1e-4)


def test_ssim_is_that_of_the_real_channel_cut():
    x, x_net = 2 * torch.rand(3, 2, 16, 24) - 0.5, torch.rand(3, 2, 16, 24)
    expected = ssim(x_net[:, :1], x[:, :1].clamp(0, 1), data_range=1.0, reduction="none")
    assert torch.equal(PaperSSIM()(x_net, x), expected)
    x_net[:, 1] += 5
    assert torch.equal(PaperSSIM()(x_net, x), expected)


@pytest.mark.parametrize("metric", [PaperPSNR, PaperSSIM])
def test_higher_is_better_and_the_hosts_arguments_work(metric):
    x, x_net = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    assert not metric().lower_better
    values = metric()(x_net, x)
    assert torch.equal(metric(reduction="mean")(x_net, x), values.mean())
    cropped = metric(center_crop=12)(x_net, x)
    assert torch.equal(cropped, metric()(x_net[..., 2:-2, 2:-2], x[..., 2:-2, 2:-2]))


X = torch.rand(2, 1, 16, 16)


@pytest.mark.parametrize("metric", [PaperPSNR, PaperSSIM])
@pytest.mark.parametrize(
    "x_net, x, error, message",
    [
        (X, None, TypeError, "x must be a torch.Tensor, got NoneType"),
        (X.int(), X, TypeError, "x_net must be a tensor of real or complex numbers"),
        (X, X[:1], ValueError, r"one shape and device, got \(2, .* and \(1, 1, 16, 16"),
        (X.expand(-1, 3, -1, -1), X, ValueError, r"got \(2, 3, .* and \(2, 1, 16, 16\)"),
        (X, X.to("meta"), ValueError, "on cpu and .* on meta"),
        (X[:0], X[:0], ValueError, "x_net must be a batch of shape .* not empty"),
        (X[0, 0, 0], X, ValueError, r"x_net must be a batch .* got \(16,\)"),
    ],
)
def test_images_refused(metric, x_net, x, error, message):
    with pytest.raises(error, match=message):
        metric()(x_net, x)


@pytest.mark.parametrize("x", [X[..., :10], X[..., :10, :], X[:, 0]])
def test_images_smaller_than_the_window_are_refused(x):
    with pytest.raises(ValueError, match="H, W at least 11, the window of SSIM, got"):
        PaperSSIM()(x, x)


@pytest.mark.parametrize("metric", [PaperPSNR, PaperSSIM])
def test_nan_is_seen_in_its_image_alone(metric):
    x_net = X.clone()
    x_net[0, 0, 3, 3] = math.nan
    assert metric()(x_net, 1 - X).isnan().tolist() == [True, False]
