"""
Every unrolled or iterative class of deepinv, and every denoiser, jittered: the tables of
docs/models.md.

    python tests/models/deepinv_tables.py

writes them anew. Each row is run: built, jittered, trained by one step, evaluated. What it says
is what came out.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import deepinv as dinv
import torch
from torch import nn

import deepinv_jitter as dj
from deepinv_jitter.evaluation.tables import in_markdown

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
SIZE = (1, 16, 16)


# --- measurements and their physics


def images(channels=1, size=16, batch=2):
    shape, generator = (channels, size, size), torch.Generator().manual_seed(0)
    mask = (torch.rand(shape, generator=generator) > 0.3).float()
    physics = dinv.physics.Inpainting(shape, mask=mask)
    physics.noise_model = dinv.physics.GaussianNoise(0.1)
    return torch.rand((batch, *shape), generator=generator) * mask, physics


def mri():
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(1, 1, 16, 16, generator=generator) > 0.3).float()
    physics = dj.SingleCoilMRI(mask, img_size=(16, 16))
    return physics(torch.rand(2, 2, 16, 16, generator=generator)), physics


def movie(averaged=False):
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(1, 2, 3, 16, 16, generator=generator)
    if not averaged:
        return y, dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    mask = (torch.rand(1, 2, 3, 16, 16, generator=generator) > 0.3).float()
    return mask * y, dinv.physics.DynamicMRI(mask=mask, img_size=(3, 16, 16))


# --- what happens to a model


def output(model, y, physics, train=True, silent=False):
    """Without anything that the pass before has left behind."""
    model = model if WITHOUT_STATE & set(map(type, model.modules())) else copy.deepcopy(model)
    model.train(train)
    torch.manual_seed(0)
    with dj.no_jitter(model if silent else nn.Identity()), torch.no_grad():
        return model(y.clone(), physics)


#: Denoisers that remember nothing from call to call, and cannot be copied or are large.
WITHOUT_STATE = {dinv.models.BM3D, dinv.models.DiffUNet, dinv.models.RAM}


def outcome(build, jitter, data) -> str:
    """``works``, or what is said instead; that there is noise in training alone is asserted."""
    y, physics = data()
    try:
        torch.manual_seed(0)
        model = build()
        torch.manual_seed(0)
        plain = build()
        jitter(model)
        noisy = output(model, y, physics)
    except (TypeError, ValueError, RuntimeError) as error:
        return f"refused: {error}"
    silent = output(model, y, physics, silent=True)
    evaluated = output(model, y, physics, train=False)
    assert noisy.isfinite().all(), "not finite"
    assert not torch.equal(noisy, silent), "no noise in training"
    assert torch.equal(silent, output(plain, y, physics)), "not silent"
    expected = output(plain, y, physics, train=False)
    assert torch.equal(evaluated, expected), "noise in evaluation"
    return trained(model, y, physics)


def trained(model, y, physics) -> str:
    """One step of training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    try:
        model.train()(y, physics).abs().square().mean().backward()
    except RuntimeError as error:
        reason = str(error).split(":")[0].split(" and does")[0]
        return f"runs, but cannot be trained: {reason}"
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [w.grad for w in weights if w.grad is not None]
    assert all(g.isfinite().all() for g in gradients) and any(map(torch.any, gradients))
    optimizer.step()
    return "works"


# --- the models


@dataclass(frozen=True)
class Model:
    """A model, how it is jittered, measurements for it, and where the noise is."""

    build: Callable[[], nn.Module]
    noise: str = ""
    at: str | None = None
    data: Callable = images

    def outcome(self) -> str:
        jitter = partial(dj.jitter, sigma=0.1, at=self.at)
        result = outcome(self.build, jitter, self.data)
        at = f' with `at="{self.at}"`' if self.at else ""
        return f"works{at}: noise {self.noise}" if result == "works" else result


def dncnn(channels=1):
    return dinv.models.DnCNN(channels, channels, depth=3, nf=4, pretrained=None)


def optim(name, channels=1, **options):
    kind = dinv.optim.RED if name in ("GD", "MD") else dinv.optim.PnP
    return getattr(dinv.optim, name)(
        data_fidelity=dinv.optim.L2(),
        prior=kind(dncnn(channels)),
        stepsize=0.5,
        max_iter=3,
        unfold=True,
        trainable_params=["stepsize"],
        **options,
    )


def poisson(name):
    options = {"unfold": True, "max_iter": 3, "trainable_params": ["lambda"]}
    return getattr(dinv.optim, name)(prior=dinv.optim.Tikhonov(), **options)


def builder(make, **options):
    return make(
        "PGD",
        params_algo={"stepsize": 0.5, "lambda": 1.0, "g_param": 0.1},
        trainable_params=["stepsize"],
        data_fidelity=dinv.optim.L2(),
        prior=dinv.optim.PnP(dncnn()),
        max_iter=3,
        **options,
    )


class LearnedPrimalDual(dinv.optim.optim_iterators.CPIteration):
    """As in deepinv's example of PDNet: networks in the place of the proximal operators."""

    class Dual(nn.Module):
        def forward(self, u, w, cur_data_fidelity, y, *args):
            return cur_data_fidelity.prox(u, w, y)

    class Primal(nn.Module):
        def forward(self, x, w, cur_prior, *args):
            return cur_prior.prox(x, w)

    def __init__(self):
        super().__init__()
        self.g_step, self.f_step = self.Primal(), self.Dual()


class PrimalBlock(dinv.optim.Prior):
    def __init__(self):
        super().__init__()
        self.block = dinv.models.PDNet_PrimalBlock(in_channels=3, out_channels=2, nf=4)

    def prox(self, x, w):
        return self.block(x, w[:, :1])


class DualBlock(dinv.optim.DataFidelity):
    def __init__(self):
        super().__init__()
        self.block = dinv.models.PDNet_DualBlock(in_channels=4, out_channels=2, nf=4)

    def prox(self, u, w, y):
        return self.block(u, w[:, 1:], y)


def pdnet():
    return dinv.unfolded.unfolded_builder(
        LearnedPrimalDual(),
        params_algo={"K": lambda x: x, "K_adjoint": lambda x: x, "beta": 0.0},
        trainable_params=[],
        data_fidelity=[DualBlock() for _ in range(3)],
        prior=[PrimalBlock() for _ in range(3)],
        max_iter=3,
        custom_init=lambda y, physics: {"est": (y.repeat(1, 2, 1, 1),) * 3},
        get_output=lambda X: X["est"][0][:, :1],
    )


def splitting():
    generator = dinv.physics.generator.GaussianSplittingMaskGenerator(SIZE, 0.6)
    return dinv.loss.SplittingLoss(mask_generator=generator).adapt_model(optim("PGD"))


def varnet(mode):
    return dinv.models.VarNet(dncnn(2), num_cascades=3, mode=mode)


class Backbone(nn.Module):
    """A network of an image and of nothing else."""

    def __init__(self):
        super().__init__()
        self.body = dncnn()

    def forward(self, x, *args, **kwargs):
        return self.body(x)


GRADIENT = "on the gradient of the data fidelity"
PROX = "in the proximal step of the data fidelity"
INSIDE = "in the model that it holds"
DENOISER = "on the output of the denoiser in every cascade"
CASCADES = "backbone_net.*.denoiser"
MODELS = {
    "GD": Model(partial(optim, "GD"), GRADIENT),
    "PGD": Model(partial(optim, "PGD"), GRADIENT),
    "FISTA": Model(partial(optim, "FISTA"), GRADIENT),
    "MD": Model(partial(optim, "MD"), GRADIENT),
    "PMD": Model(partial(optim, "PMD"), GRADIENT),
    "HQS": Model(partial(optim, "HQS"), PROX),
    "ADMM": Model(partial(optim, "ADMM"), PROX),
    "DRS": Model(partial(optim, "DRS"), PROX),
    "PDCP": Model(
        partial(optim, "PDCP", stepsize_dual=0.5), "on the data fidelity, in its dual step"
    ),
    "BaseOptim, optim_builder": Model(
        partial(builder, dinv.optim.optim_builder, unfold=True), "as its iterator has it"
    ),
    "BaseUnfold, unfolded_builder": Model(
        partial(builder, dinv.unfolded.unfolded_builder), "as its iterator has it"
    ),
    "MoDL": Model(partial(dinv.models.MoDL, dncnn(2)), PROX, data=mri),
    "PDNet_PrimalBlock, PDNet_DualBlock": Model(pdnet, "on the input of the dual blocks"),
    "VarNet": Model(partial(varnet, "varnet"), DENOISER, CASCADES, mri),
    'VarNet(mode="e2e-varnet")': Model(partial(varnet, "e2e-varnet"), DENOISER, CASCADES, mri),
    "RAM": Model(
        partial(dinv.models.RAM, (1,), pretrained=False),
        "on the output of every block",
        "m_*.enc.*",
        partial(images, size=64, batch=1),
    ),
    "ArtifactRemoval": Model(
        lambda: dinv.models.ArtifactRemoval(dncnn()),
        "on the output of every layer of a DnCNN",
        "backbone_net.conv_list.*",
    ),
    "EquivariantReconstructor": Model(
        lambda: dinv.models.EquivariantReconstructor(optim("PGD")), INSIDE
    ),
    "TimeAgnosticNet": Model(
        lambda: dinv.models.TimeAgnosticNet(optim("PGD", channels=2)), INSIDE, data=movie
    ),
    "TimeAveragingNet": Model(
        lambda: dinv.models.TimeAveragingNet(optim("PGD", channels=2)),
        INSIDE,
        data=partial(movie, averaged=True),
    ),
    "SplittingLoss.adapt_model": Model(splitting, INSIDE),
    "R2RLoss.adapt_model": Model(lambda: dinv.loss.R2RLoss().adapt_model(optim("PGD")), INSIDE),
    "BaseDEQ, DEQ_builder": Model(partial(builder, dinv.unfolded.DEQ_builder)),
    "MLEM": Model(partial(poisson, "MLEM")),
    "OSEM": Model(partial(poisson, "OSEM")),
    "BSREM": Model(partial(poisson, "BSREM")),
    "SIRT": Model(partial(dinv.optim.SIRT, unfold=True, trainable_params=["stepsize"])),
    "BlindRL": Model(dinv.optim.BlindRL),
    "DPIR": Model(lambda: dinv.optim.DPIR(denoiser=dncnn())),
    "EPLL": Model(partial(dinv.optim.EPLL, pretrained=None, n_components=2)),
    "DEAL": Model(partial(dinv.models.DEAL, pretrained=None)),
    "DeepImagePrior": Model(lambda: dinv.models.DeepImagePrior(dncnn(), SIZE)),
    "CSGMGenerator": Model(dinv.models.CSGMGenerator),
    "DiffPIR": Model(lambda: dinv.sampling.DiffPIR(dncnn(), dinv.optim.L2())),
    "DDRM": Model(lambda: dinv.sampling.DDRM(dncnn())),
    "PosteriorDiffusion, DPS": Model(lambda: dinv.sampling.DPS(dncnn())),
    "BaseSampling, ULA, SKRock, DiffusionSampler": Model(
        lambda: dinv.sampling.ULA(dinv.optim.ScorePrior(dncnn()), dinv.optim.L2())
    ),
}
#: Reconstructors that repeat nothing: what is at hand for any network will do, ``at``.
ONE_PASS = {"DIRECTModel", "MPRNet", "PromptIR", "SRResNet", "WienerDeconvolution"}
#: What cannot be built without a server or a download, or trains itself in every call.
NOT_HERE = {"Client", "DiffusersDenoiserWrapper", "Poisson2Sparse"}


# --- the denoisers


@dataclass(frozen=True)
class Swap:
    """A denoiser, as an expression, and the noise level that it is told."""

    code: str
    level: float | None = 0.1
    channels: int = 1
    size: int = 16
    iterations: int = 2
    needs: str = ""

    @property
    def is_missing(self) -> bool:
        return bool(self.needs) and find_spec(self.needs) is None

    def build(self, unfolded, level=None) -> nn.Module:
        names = vars(dinv.models) | {"torch": torch, "network": Backbone()}
        denoiser = eval(self.code, names)
        options = {"stepsize": 0.5, "max_iter": self.iterations}
        return unfolded(denoiser, sigma_denoiser=level, **options)

    def outcome(self, unfolded) -> str:
        build = partial(self.build, unfolded, self.level)
        return outcome(build, partial(dj.jitter, sigma=0.1), self.data)

    def data(self):
        return images(self.channels, self.size)

    def needs_level(self) -> bool:
        """Whether it says so, without one."""
        try:
            output(self.build(dj.UnfoldedPGD), *self.data())
        except ValueError as error:
            assert "pass sigma_denoiser" in str(error)
            return True
        return False


TINY = "num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, pretrained=None"
SMALL = (
    "img_resolution=16, in_channels=1, out_channels=1, model_channels=32, "
    "channel_mult=(1,), num_blocks=1, attn_resolutions=(), pretrained=None"
)
DENOISERS = {
    "DnCNN": Swap("DnCNN(1, 1, pretrained=None)", None),
    "UNet": Swap("UNet(1, 1, scales=2)", None),
    "DRUNet": Swap("DRUNet(1, 1, nc=(4, 4, 8, 8), nb=1, pretrained=None)"),
    "GSPnP": Swap(
        "GSPnP.GSPnP(DRUNet(1, 1, nc=(4, 4, 8, 8), nb=1, pretrained=None), detach=False)"
    ),
    "FFDNet": Swap("FFDNet(pretrained=None)"),
    "SCUNet": Swap("SCUNet(config=[1] * 7, pretrained=None)", None, 3, 64, 1),
    "SwinIR": Swap(
        "SwinIR(16, in_chans=1, embed_dim=12, depths=(2,), num_heads=(2,), pretrained=None)", None
    ),
    "Restormer": Swap(f"Restormer(1, 1, dim=4, {TINY})", None),
    "PromptIR": Swap(f"PromptIR(1, 1, {TINY})", None, iterations=1),
    "MPRNet": Swap(
        "MPRNet(1, 1, n_feat=4, scale_unetfeats=4, scale_orsnetfeats=4, num_cab=1)",
        None,
        iterations=1,
    ),
    "DScCP": Swap("DScCP(depth=2, n_channels_per_layer=4, pretrained=None)", channels=3),
    "RAM": Swap("RAM((1,), pretrained=False)", size=64, iterations=1),
    "DiffUNet": Swap("DiffUNet(1, 1, pretrained=None)", size=32, iterations=1),
    "NCSNpp": Swap(f"NCSNpp({SMALL})"),
    "ADMUNet": Swap(f"ADMUNet({SMALL})"),
    "EDMPrecond": Swap("EDMPrecond(network)"),
    "ScoreModelWrapper": Swap(
        "ScoreModelWrapper(network, 'epsilon', sigma_t=lambda t: t, scale_t=torch.ones_like, "
        "sigma_inverse=lambda s: s)"
    ),
    "AutoEncoder": Swap("AutoEncoder(256)", None),
    "EquivariantDenoiser": Swap("EquivariantDenoiser(DnCNN(1, 1, pretrained=None))", None),
    "AnscombeDenoiser": Swap("AnscombeDenoiser(DnCNN(1, 1, pretrained=None))"),
    "ComplexDenoiserWrapper": Swap("ComplexDenoiserWrapper(DnCNN(1, 1, pretrained=None))"),
    "MinusOneOneDenoiserWrapper": Swap("MinusOneOneDenoiserWrapper(DnCNN(1, 1, pretrained=None))"),
    "WaveletDenoiser": Swap("WaveletDenoiser(level=2, wv='db2')", needs="ptwt"),
    "WaveletDictDenoiser": Swap(
        "WaveletDictDenoiser(level=2, list_wv=('db2', 'db4'))", needs="ptwt"
    ),
    "TVDenoiser": Swap("TVDenoiser(n_it_max=5)"),
    "TVL1Denoiser": Swap("TVL1Denoiser(n_it_max=5)"),
    "TGVDenoiser": Swap("TGVDenoiser(n_it_max=5)"),
    "MedianFilter": Swap("MedianFilter(3)", None),
    "BilateralFilter": Swap("BilateralFilter()", None),
    "BM3D": Swap("BM3D()", needs="bm3d"),
    "EPLLDenoiser": Swap("EPLLDenoiser(n_components=3, pretrained=None)"),
    "MMSE": Swap("MMSE(torch.rand(5, 1, 16, 16), torch.device('cpu'))", 1.0),
}


# --- the page


@cache
def model_row(name: str) -> str:
    model = MODELS[name]
    return _row(f"`{name}`", model.outcome())


@cache
def denoiser_row(name: str) -> str:
    swap = DENOISERS[name]
    # The large ones in one network alone
    unfolded = (dj.UnfoldedPGD, dj.UnfoldedGD)[: swap.iterations]
    results = [swap.outcome(u) for u in unfolded]
    if len(set(results)) == 1:
        results = results[:1]
    level = "needed" if swap.needs_level() else ""
    assert (swap.level is not None) == bool(level)
    result = "; GD ".join(results)
    needs = f" (`{swap.needs}`)" if swap.needs else ""
    return _row(f"`{swap.code}`{needs}", result, level)


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(in_markdown, cells))} |"


def write() -> None:
    """Put the rows into the page, in the place of the old ones."""
    text = PAGE.read_text()
    rows = {"models": map(model_row, MODELS), "denoisers": map(denoiser_row, DENOISERS)}
    for table, lines in rows.items():
        start, end = f"<!-- {table} -->\n", f"<!-- end of {table} -->"
        before, rest = text.split(start)
        head = "".join(rest.split(end)[0].splitlines(True)[:2])
        after = rest.split(end)[1]
        text = before + start + head + "".join(f"{line}\n" for line in lines) + end + after
    PAGE.write_text(text)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    write()
