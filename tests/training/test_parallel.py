"""Two processes on the CPU do what one does, by two_ranks.py under torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import deepinv as dinv
import pytest
import torch
import two_ranks
from torch.utils.data import DataLoader

import deepinv_jitter as dj
from deepinv_jitter.training import distributed as ranks
from deepinv_jitter.training import rng
from deepinv_jitter.training.parallel import has_unused

SCRIPT = Path(two_ranks.__file__)


def torchrun(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={two_ranks.RANKS}", str(SCRIPT), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "robustness").mkdir()
    two_ranks.build(folder / "from_one", jitter=0.1).train()
    done = torchrun(folder)
    (folder / "said").write_text(done.stdout + done.stderr)
    (folder / "status").write_text(str(done.returncode))
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What each rank found."""
    files = [folder / f"{rank}.pt" for rank in range(two_ranks.RANKS)]
    assert all(file.exists() for file in files), (folder / "said").read_text()[-3000:]
    return [torch.load(file, weights_only=True) for file in files]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same in a single process."""
    return two_ranks.gradients(tmp_path_factory.mktemp("one"))


def close(a, b, tolerance=1e-6):
    return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), atol=tolerance, rtol=0)


@pytest.mark.parametrize("scheme", two_ranks.NOISELESS)
def test_gradients_are_those_of_the_union_batch(found, one, scheme):
    expected = one[scheme]["gradients"]
    assert len(expected) == 2 * 3  # epochs times batches
    for rank in found:
        for own, whole in zip(rank["gradients"][scheme]["gradients"], expected, strict=True):
            for a, b in zip(own, whole, strict=True):
                assert (a is None) == (b is None)
                assert a is None or close(a, b)


@pytest.mark.parametrize("scheme", two_ranks.NOISELESS)
@pytest.mark.parametrize("name", ["loss", "eval loss", "metric"])
def test_losses_and_metrics_are_those_of_all_samples(found, one, scheme, name):
    """7 evaluation samples in batches of 2: 4 on one rank, 3 on the other."""
    values = [rank["gradients"][scheme][name] for rank in found]
    assert values[0] == values[1]
    assert close(values[0], one[scheme][name])


def test_ranks_have_the_same_weights(found):
    first, second = (rank["gradients"] for rank in found)
    for scheme, outcome in first.items():
        for name, value in outcome["weights"].items():
            assert torch.equal(value, second[scheme]["weights"][name])


def test_noise_differs_between_ranks_and_follows_from_the_seed(found):
    (first, again), (other, _) = (rank["noise"] for rank in found)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_first_rank_alone_writes(folder):
    runs = list((folder / "gradients").glob("*/*"))
    assert len(runs) == len(two_ranks.NOISELESS)
    for run in runs:
        assert sorted(p.name for p in run.iterdir()) == ["ckp_1.pth.tar", "ckp_best.pth.tar"]


def test_a_resumed_run_is_the_uninterrupted_one(found):
    for rank in found:
        for name, value in rank["resumed"]["whole"].items():
            assert torch.equal(value, rank["resumed"]["resumed"][name])


def test_perturbations_of_all_samples_are_known_to_all(found):
    first, second = (rank["resumed"]["deltas"] for rank in found)
    assert sorted(first) == [(0, i) for i in range(12)]
    for key, delta in first.items():
        assert torch.equal(delta, second[key])
        assert torch.equal(delta, found[0]["resumed"]["deltas of whole"][key])


def test_checkpoints_go_from_two_processes_to_one(folder, tmp_path):
    path = dj.latest_checkpoint(folder / "gradients" / "jitter")
    checkpoint = torch.load(path, weights_only=True)
    trainer = two_ranks.build(tmp_path, epochs=3, ckpt_pretrained=path)
    assert list(checkpoint["state_dict"]) == list(trainer.model.state_dict())
    trainer.train()
    assert len(trainer.loss_history["SupLoss"]) == 3
    assert trainer.loss_history["SupLoss"][:2] == checkpoint["loss"]["SupLoss"]


def test_an_epoch_that_two_processes_began_begins_anew_in_one(found, folder, tmp_path):
    """Which has twice as many batches of the same size."""
    path = next((folder / "interrupted" / "0").glob("*/ckp_interrupted.pth.tar"))
    loader = DataLoader(dj.IndexedDataset(two_ranks.Signals1D(12)), 2)
    options = {"jitter": 0.1, "train_dataloader": loader}
    trainer = two_ranks.build(tmp_path, ckpt_pretrained=path, **options)
    trainer.train()
    assert len(trainer.loss_history["SupLoss"]) == 2


def test_checkpoints_go_from_one_process_to_two(found, folder):
    path = next((folder / "from_one").glob("*/ckp_1.pth.tar"))
    before = torch.load(path, weights_only=True)["loss"]["SupLoss"]
    first, second = (rank["from_one"] for rank in found)
    assert first["loss"] == second["loss"] and first["loss"][:2] == before
    assert len(first["loss"]) == 3
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name])


@pytest.mark.parametrize("after", ["resumed", "cut and resumed"])
def test_averaged_weights_are_resumed_exactly(found, after):
    """Those of the model, of the training and the statistics of batch normalisation, on both."""
    first = found[0]["averaged"]["whole"]
    for rank in found:
        for name, value in rank["averaged"]["whole"].items():
            assert torch.equal(value, first[name]), name
            assert torch.equal(rank["averaged"][after][name], value), name
    name = "prior.0.network.layers.0.weight"
    assert not torch.equal(first[name], first[f"raw {name}"])
    assert first["steps"] == 4 * 3


def test_unused_parameters_are_looked_for_where_there_are_any(found, folder):
    """Which costs time elsewhere, of which torch warns."""
    for rank in found:
        assert rank["unused"] == {"idle": True, "busy": False}
    assert "find_unused_parameters" not in (folder / "said").read_text()


def test_each_process_keeps_the_physics_of_its_batch(found):
    for rank in found:
        assert len(rank["held"]) >= 2 * 3 and not any(rank["held"])


@pytest.mark.parametrize("idle", [True, False])
def test_to_look_for_unused_parameters_leaves_no_trace(tmp_path, idle):
    trainer = two_ranks.with_network(two_ranks.Normalised(idle), tmp_path, jitter=0.1)
    trainer.setup_train()
    before = two_ranks.weights(trainer)
    y, physics = torch.randn(4, 8), trainer.physics[0]
    found = list(rng.generators([trainer.model, physics]))
    states = [torch.get_rng_state(), *(g.get_state() for g in found)]
    assert has_unused(trainer, y, physics, None) == idle
    assert all(p.grad is None for p in trainer.model.parameters())
    for name, value in before.items():
        assert torch.equal(value, trainer.model.state_dict()[name])
    after = [torch.get_rng_state(), *(g.get_state() for g in found)]
    assert len(found) == 1 and all(map(torch.equal, states, after))


def test_every_epoch_has_its_own_order(found):
    """And in each, every sample is on one rank."""
    data = two_ranks.Signals1D(12).y[:, 0].sort().values
    first, second = (rank["epochs"] for rank in found)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(torch.cat([a, b]).sort().values, data)
    assert not torch.equal(first[0], first[1])


def test_the_test_is_that_of_one_process(found, tmp_path):
    expected = two_ranks.tested(tmp_path)
    for rank in found:
        for name in ("MSE", "MSE_std", "MSE no learning"):
            assert close(rank["tested"][name], expected[name])
        assert len(rank["tested"]["MSE_vals"]) == 7


def without_time(table):
    return [line for line in table.splitlines() if not line.endswith("s on cpu")]


def test_the_robustness_report_is_that_of_one_process(found, tmp_path):
    expected = two_ranks.robustness(tmp_path)
    for rank in found:
        tables = rank["robustness"]["table"], expected["table"]
        assert without_time(tables[0]) == without_time(tables[1])
        assert rank["robustness"]["digests"] == expected["digests"]
        for label, columns in expected["values"].items():
            for name, values in columns.items():
                got = rank["robustness"]["values"][label][name]
                assert torch.equal(got, values) or values.isnan().all(), (label, name)


def test_each_rank_keeps_its_state(folder):
    states = sorted(p.name for p in (folder / "robustness").iterdir())
    assert states == ["state.0of2", "state.1of2"]


def test_a_batch_that_is_not_finite_is_left_out_by_all(found, tmp_path):
    expected = two_ranks.left_out(tmp_path)
    assert expected["skipped"] == [(0, 1), (1, 1)]
    for rank in found:
        assert rank["left_out"]["skipped"] == expected["skipped"]
        for name, value in rank["left_out"]["weights"].items():
            assert close(value, expected["weights"][name])
        assert "in epoch 0, batch 1" in rank["left_out"]["error"]
        assert rank["left_out"]["files"] == ["ckp_interrupted.pth.tar"]


def test_all_end_where_one_is_told_to(found):
    """After the batch, or after the validation; and go on as if nothing had been."""
    for *outcomes, whole in (rank["interrupted"] for rank in found):
        for outcome, place in zip(outcomes, [(1, 1), (1, 0)], strict=True):
            assert outcome["status"] == 143 and outcome["place"] == place
            assert outcome["file"] == "ckp_interrupted.pth.tar"
            for name, value in whole.items():
                assert torch.equal(value, outcome["end"][name])


MESSAGES = {
    "training": "ValueError: each training loader must share .* use DataLoader",
    "evaluation": "ValueError: evaluation loaders must count every .* 8 of 7: use DataLoader",
    "test": "ValueError: evaluation loaders must count every .* 8 of 7: use DataLoader",
    "few": "ValueError: data must hold a sample for each of 2 processes, got 1: evaluate",
    "outside": "NotImplementedError: Outside trains the model outside .* a single process",
    "model": "TypeError: model must be the plain model, got DistributedDataParallel",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_refused(found, name):
    for rank in found:
        with pytest.raises(AssertionError, match=MESSAGES[name]):
            raise AssertionError(rank["refused"][name])


def test_a_model_on_all_ranks_needs_one_noise(found):
    """What the documentation says of deepinv.distributed."""
    (alike, apart), (other_alike, other_apart) = (rank["split"] for rank in found)
    assert torch.equal(alike, other_alike) and not close(apart, other_apart, 1e-3)


@pytest.mark.parametrize("scheme", ["SGD", "SPGD"])
def test_training_a_model_on_all_ranks_is_that_in_one_process(found, tmp_path, scheme):
    """With the tiles of one image on all of them, and one noise."""
    alone = two_ranks.tiled(tmp_path)
    expected = alone[scheme]
    first, second = (rank["tiled"][scheme] for rank in found)
    assert any("denoiser.processor" in name for name in expected)
    for name, value in expected.items():
        assert close(first[name], value) and close(first[name], second[name]), name
    # Each would perturb its own measurements alone, by the whole radius
    for rank in found:
        assert "attack in a single process" in rank["tiled"][f"attack on {scheme}"]
    assert alone[f"attack on {scheme}"] == ""


def test_the_failure_of_one_rank_ends_the_run_with_its_error(folder):
    """The last thing that the two processes do; one that hangs would do so for half an hour."""
    assert (folder / "status").read_text() != "0"
    assert "OSError: sample 5 is broken" in (folder / "said").read_text()


def test_data_parallel_is_refused():
    model = torch.nn.DataParallel(torch.nn.Linear(2, 2))
    physics = dinv.physics.Denoising()
    loader = DataLoader(dj.PointDataset(4))
    with pytest.raises(TypeError, match="must be the plain model, got DataParallel: .* torchrun"):
        dj.JitterTrainer(model, physics, None, loader, device="cpu")
    with pytest.raises(TypeError, match="must be the plain model, got DataParallel"):
        dj.evaluate_robustness(model, loader, physics, epsilons=[0.1])


def test_streams_of_the_ranks():
    """The first rank draws what one process draws; the others follow from the same seed."""
    draws = []
    for rank in (0, 0, 1, 1, 2):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(5)
        rng.diverge([generator], rank)
        draws.append((torch.rand(3, generator=generator), torch.rand(3)))
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(draws[0][0], expected)
    for stream in (0, 1):
        values = [draw[stream] for draw in draws]
        assert torch.equal(values[0], values[1]) and torch.equal(values[2], values[3])
        assert not torch.equal(values[0], values[2])
        assert not torch.equal(values[2], values[4])


def test_samplers_of_a_single_process():
    assert ranks.count() == 1 and ranks.own() == 0
    assert list(dj.ShardSampler(range(5))) == [0, 1, 2, 3, 4]
