"""deepinv's own tests of its Trainer, run on ours. Half precision on the CPU, timings and slow cases are left out."""

import deepinv as dinv
import pytest
from host_suite import host_module, host_test

import deepinv_jitter as dj

host = host_module("test_trainer")
conftest = host_module("conftest")
imsize, model, physics, dummy_model = host.imsize, host.model, host.physics, host.dummy_model
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
test_early_stop = host_test(host, "test_early_stop")
test_loss_logging = host_test(host, "test_loss_logging")
test_model_forward_passes = host_test(host, "test_model_forward_passes", **FULL_PRECISION)
test_gradient_norm = host_test(host, "test_gradient_norm")
test_out_dir_collision_detection = host_test(host, "test_out_dir_collision_detection")
test_no_learning_metrics = host_test(
    host, "test_trained_model_not_used_for_no_learning_metrics"
)

TRAINERS = {"JitterTrainer": dj.JitterTrainer}


@pytest.fixture(autouse=True, params=TRAINERS)
def trainer(request, monkeypatch):
    monkeypatch.setattr(dinv, "Trainer", TRAINERS[request.param])
    monkeypatch.setattr(host, "Trainer", TRAINERS[request.param])
