"""deepinv's own tests of its Trainer, run on ours.

Half precision on the CPU, timings and slow cases are left out.
"""

from dataclasses import field, make_dataclass

import deepinv as dinv
import pytest
from host_suite import host_module, host_test

import deepinv_jitter as dj

host = host_module("test_trainer")
conftest = host_module("conftest")
imsize, model, physics, dummy_model = (host.imsize, host.model, host.physics, host.dummy_model)
dummy_dataset, rng, non_blocking_plots, use_dict_output = (
    conftest.dummy_dataset,
    conftest.rng,
    conftest.non_blocking_plots,
    conftest.use_dict_output,
)

FULL_PRECISION = {"mixed_precision": [False]}
DICTIONARIES = {"use_dict_output": [True]}

test_nolearning = host_test(host, "test_nolearning")
test_physics_generator_params = host_test(host, "test_trainer_physics_generator_params")
test_load_model = host_test(host, "test_trainer_load_model")
test_test_metrics = host_test(host, "test_trainer_test_metrics")
test_dataloader_formats = host_test(host, "test_dataloader_formats", **DICTIONARIES)
test_early_stop = host_test(host, "test_early_stop", early_stop=[3, None], max_batch_steps=[100000])
# The host's evaluation losses are those of the model in training mode, which these two tests pin:
# there it draws noise and takes evaluation data into its running means. Ours are those of the
# model in evaluation mode, see test_validation.py.
EVALUATES_IN_TRAINING_MODE = {"compute_eval_losses": [False]}
test_loss_logging = host_test(host, "test_loss_logging", **EVALUATES_IN_TRAINING_MODE)
test_model_forward_passes = host_test(
    host, "test_model_forward_passes", **FULL_PRECISION, **EVALUATES_IN_TRAINING_MODE
)
test_gradient_norm = host_test(host, "test_gradient_norm")
test_out_dir_collision_detection = host_test(host, "test_out_dir_collision_detection")
test_no_learning_metrics = host_test(host, "test_trained_model_not_used_for_no_learning_metrics")


def trainer_with(base, **defaults):
    """The trainer with other defaults, as a class: the host's tests also derive from it."""
    fields = [(name, object, field(default=v, kw_only=True)) for name, v in defaults.items()]
    return make_dataclass(base.__name__, fields, bases=(base,))


def attack(eps):
    # some of the host's data sets have no ground truth
    return dj.FrankWolfeAttack(dj.L2Ball(eps), steps=1, objective="deviation")


TRAINERS = {
    "jitter": dj.JitterTrainer,
    "no input jitter": trainer_with(dj.InputJitterTrainer, sigma=0.0),
    "input jitter": trainer_with(dj.InputJitterTrainer, sigma=0.1),
    "no attack": trainer_with(dj.AttackTrainer, attack=attack(0.0)),
    "attack": trainer_with(dj.AttackTrainer, attack=attack(0.1)),
}


#: Long tests, in which nothing depends on what the perturbation is.
LONG = {"test_dataloader_formats", "test_early_stop", "test_gradient_norm"}


def pytest_generate_tests(metafunc):
    names = ["attack"] if metafunc.function.__name__ in LONG else list(TRAINERS)
    metafunc.parametrize("trainer", names, indirect=True)


@pytest.fixture(autouse=True)
def trainer(request, monkeypatch):
    counts_forward_passes = request.function.__name__ == "test_model_forward_passes"
    if counts_forward_passes and "attack" in request.param:
        pytest.skip("an attack is made of forward passes")
    monkeypatch.setattr(dinv, "Trainer", TRAINERS[request.param])
    monkeypatch.setattr(host, "Trainer", TRAINERS[request.param])
