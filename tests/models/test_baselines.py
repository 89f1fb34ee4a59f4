import deepinv as dinv
import pytest
import torch
from properties import assert_global_rng_untouched, assert_same_parameters
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

import deepinv_jitter as dj
from deepinv_jitter.models.diffusion import T_END

STD = 0.3


class Oracle(nn.Module):
    """The U-Net whose denoiser knows the image: it is the condition."""

    def forward_unet(self, z, noise):
        sigma = (4 * noise).exp().reshape(-1, 1, 1, 1)
        total = (sigma**2 + STD**2).sqrt()
        x, condition = z.chunk(2, 1)
        x, condition = x * total, condition * STD
        return (condition - (STD / total) ** 2 * x) / (sigma * STD / total)


class Constant(nn.Module):
    """A U-Net that says the same whatever it sees."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))

    def forward_unet(self, z, noise):
        return self.level.expand(len(z), z.shape[1] // 2, *z.shape[2:])


def small_unet(channels=1):
    return dinv.models.ADMUNet(
        img_resolution=8,
        in_channels=2 * channels,
        out_channels=channels,
        model_channels=32,
        channel_mult=(1,),
        num_blocks=1,
        attn_resolutions=(),
        dropout=0.0,
        pretrained=None,
    )


NETWORKS = {
    "DnCNN body": lambda: dj.UnrolledDnCNN(1, depth=3, width=8),
    "MLP": dj.PointMLP,
    "unrolled": lambda: dj.UnfoldedGD(dj.UnrolledDnCNN(1, depth=3, width=8), max_iter=2),
    "weight normalisation": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "1-D and 3-D": lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Conv3d(2, 2, 3)),
    "transposed": lambda: nn.Sequential(nn.Conv2d(1, 3, 2, 2), nn.ConvTranspose2d(3, 2, 2, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_spectral_normalisation_bounds_every_weight(name):
    torch.manual_seed(0)
    model = dj.spectral_normalize(NETWORKS[name](), n_power_iterations=50)
    layers = [m for m in model.modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))]
    assert layers
    for layer in layers:
        assert is_parametrized(layer, "weight")
        layer.weight  # in training mode, each look takes 50 power iterations
        rows = layer.weight.transpose(0, 1) if "Transpose" in str(layer) else layer.weight
        norm = torch.linalg.matrix_norm(rows.flatten(1), 2).item()
        assert norm == pytest.approx(1, abs=1e-3)


def test_spectral_normalisation_of_zeros_is_finite_and_of_itself_changes_nothing():
    model = dj.UnrolledDnCNN(1, depth=3, width=8)
    assert not model.body[-1].weight.any()
    dj.spectral_normalize(model)
    assert model(torch.randn(1, 1, 8, 8)).isfinite().all()
    keys = list(model.state_dict())
    assert list(dj.spectral_normalize(model).state_dict()) == keys


def test_layers_with_the_former_spectral_norm_of_torch_stay():
    former = nn.utils.spectral_norm(nn.Conv2d(1, 2, 3))
    model = dj.spectral_normalize(nn.Sequential(former, nn.Conv2d(2, 1, 3)))
    assert [is_parametrized(layer) for layer in model] == [False, True]


def test_spectral_normalisation_holds_still_in_evaluation_and_loads():
    model = dj.spectral_normalize(dj.PointMLP()).eval()
    x = torch.randn(5, 2)
    assert torch.equal(model(x), model(x))
    other = dj.spectral_normalize(dj.PointMLP()).eval()
    other.load_state_dict(model.state_dict())
    assert_same_parameters(model, other)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        ("net", {}, TypeError, r"module must be a torch.nn.Module, got str"),
        (nn.ReLU(), {}, ValueError, r"must hold a convolution .* got ReLU without one"),
        (dj.PointMLP(), {"n_power_iterations": 0}, ValueError, "n_power_iterations .* at least 1"),
    ],
)
def test_spectral_normalisation_refuses(module, options, error, message):
    with pytest.raises(error, match=message):
        dj.spectral_normalize(module, **options)


def test_denoiser_is_the_preconditioned_network():
    model = dj.ConditionalDDPM(Constant(), data_std=STD).double()
    nn.init.constant_(model.unet.level, 2.0)
    x = torch.randn(3, 1, 4, 4).double()
    sigma = torch.tensor([0.1, 1.0, 10.0]).double()
    s = sigma.reshape(-1, 1, 1, 1)
    expected = STD**2 / (s**2 + STD**2) * x + s * STD / (s**2 + STD**2).sqrt() * 2
    torch.testing.assert_close(model.denoise(x, sigma, x), expected)


@pytest.mark.parametrize("steps", [1, 10])
def test_sampling_with_a_perfect_denoiser_gives_the_image(steps):
    model = dj.ConditionalDDPM(Oracle(), steps=steps, data_std=STD)
    y = torch.rand(2, 1, 8, 8)
    x = model(y, dinv.physics.Denoising())
    # What is left is the noise of the smallest level
    left = model.diffusion(y).sigma_t(T_END).item()
    assert (x - y).abs().max() < 5 * left


def test_loss_of_a_perfect_denoiser_is_zero_and_of_another_one_is_not():
    x, physics = torch.rand(4, 1, 8, 8), dinv.physics.Denoising()
    for unet, least, most in ((Oracle(), 0, 1e-6), (Constant(), 0.1, 100)):
        model = dj.ConditionalDDPM(unet, data_std=STD)
        loss = dj.DenoisingLoss(torch.Generator().manual_seed(0))
        values = loss(None, x, physics.A(x), physics, model)
        assert values.shape == (4,) and least <= values.min() <= values.max() <= most


def test_loss_leaves_the_global_generator_alone_if_it_has_its_own():
    model = dj.ConditionalDDPM(Constant())
    x, physics = torch.rand(2, 1, 8, 8), dinv.physics.Denoising()
    with assert_global_rng_untouched():
        first, second = (
            dj.DenoisingLoss(torch.Generator().manual_seed(3))(None, x, x, physics, model)
            for _ in range(2)
        )
    assert torch.equal(first, second)


def test_sampling_is_deterministic_differentiable_and_sample_by_sample():
    torch.manual_seed(0)
    model = dj.ConditionalDDPM(small_unet(), steps=3).eval()
    # The host's U-Nets end in zeros; only after training do they read their input
    nn.init.normal_(model.unet.out_conv.weight, std=0.1)
    physics = dinv.physics.Denoising()
    y = torch.rand(3, 1, 8, 8, requires_grad=True)
    with assert_global_rng_untouched():
        x = model(y, physics)
    assert torch.equal(x, model(y, physics))
    torch.testing.assert_close(x[1:2], model(y[1:2], physics), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(x.square().sum(), y)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_ddpm_can_be_attacked():
    torch.manual_seed(0)
    model = dj.ConditionalDDPM(small_unet(), steps=2)
    nn.init.normal_(model.unet.out_conv.weight, std=0.1)
    x, physics = torch.rand(2, 1, 8, 8), dinv.physics.Denoising()
    attack = dj.APGDAttack(dj.L2Ball(0.5), steps=5)
    result = attack.run(model, x, physics(x), physics)
    assert (result.loss > 1.01 * result.loss_clean).all()
    assert not result.flags["stochastic_model"].any()


def test_trainer_learns_and_samples_in_evaluation():
    torch.manual_seed(0)
    model = dj.ConditionalDDPM(Constant(), steps=2, data_std=STD)
    data = dinv.datasets.TensorDataset(x=torch.full((8, 1, 8, 8), 0.7), use_dict_output=True)
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    trainer = dj.DDPMTrainer(
        model,
        dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1)),
        torch.optim.Adam(model.parameters(), lr=0.1),
        loader,
        eval_dataloader=loader,
        epochs=5,
        device="cpu",
        online_measurements=True,
        save_path=None,
        compute_eval_losses=True,
        verbose=False,
        show_progress_bar=False,
    )
    modes, denoise = [], model.denoise
    model.denoise = lambda *args: modes.append(model.training) or denoise(*args)
    trainer.train()
    # Two batches of training, then the losses of two of evaluation, each with two steps of sampling
    assert modes == [True, True, *[False] * 6] * 5
    losses = trainer.loss_history["DenoisingLoss"]
    assert losses[-1] < losses[0] and model.unet.level.item() > 0.1
    assert len(trainer.eval_metrics_history["PSNR"]) == 5
    x = torch.full((1, 1, 8, 8), 0.7)
    sampled = trainer.model_inference(x, dinv.physics.Denoising(), train=False)
    assert torch.equal(sampled, model(x, dinv.physics.Denoising()))


@pytest.mark.parametrize(
    ("unet", "options", "error", "message"),
    [
        (dj.PointMLP(), {}, TypeError, "unet must .* forward_unet, .* got PointMLP"),
        (Oracle(), {"steps": 0}, ValueError, "steps must be finite and at least 1"),
        (Oracle(), {"data_std": 0.0}, ValueError, "data_std must be finite"),
        (Oracle(), {"seed": -1}, ValueError, "seed must be finite and lie from 0 to"),
        (Oracle(), {"seed": 2**70}, ValueError, "seed must be finite and lie from 0 to"),
        (Oracle(), {"steps": 2.5}, TypeError, "steps must be a whole number"),
    ],
)
def test_ddpm_refuses(unet, options, error, message):
    with pytest.raises(error, match=message):
        dj.ConditionalDDPM(unet, **options)
