import pytest
import torch

import deepinv_jitter as dj

SAMPLES = torch.linspace(-1, 1, 12)


def psnr(**means):
    """Level to values around a mean; the samples differ by far more than the levels."""
    return {float(k[1:].replace("_", ".")): m + 5 * SAMPLES for k, m in means.items()}


CLEAN = psnr(s0=30.0, s0_1=30.2, s1=29.8, s10=25.0)
ATTACKED = psnr(s0=20.0, s0_1=22.0, s1=24.0, s10=24.5)

CASES = {
    # The differences are the same in every sample, so that any loss is beyond doubt
    "no loss": ({}, 0.1),
    "a small loss": ({"tolerance": 0.25}, 1.0),
    "any loss": ({"tolerance": 10.0}, 10.0),
    "a reference of its own": ({"reference": CLEAN[1.0]}, 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_most_robust_of_the_accurate_levels(case):
    options, expected = CASES[case]
    assert dj.choose_sigma(CLEAN, ATTACKED, **options) == expected


def test_errors_are_the_lower_the_better():
    clean, attacked = ({k: -v for k, v in m.items()} for m in (CLEAN, ATTACKED))
    assert dj.choose_sigma(clean, attacked, higher_is_better=False) == 0.1


def test_a_loss_within_doubt_is_no_loss():
    doubtful = CLEAN[0.1] - 0.1 + 3 * SAMPLES.flip(0).roll(5)
    clean = {0.1: CLEAN[0.1], 1.0: doubtful}
    assert dj.choose_sigma(clean, {k: ATTACKED[k] for k in clean}) == 1.0


def test_without_gain_there_is_no_noise():
    assert dj.choose_sigma(CLEAN, dict.fromkeys(CLEAN, SAMPLES), tolerance=10) == 0.0


@pytest.mark.parametrize(
    ("clean", "attacked", "options", "error", "message"),
    [
        ({}, {}, {}, ValueError, r"same levels, at least one, got \[\] and \[\]"),
        (CLEAN, {0.1: SAMPLES}, {}, ValueError, r"same levels, .* and \[0.1\]"),
        (CLEAN, ATTACKED, {"tolerance": -1}, ValueError, "tolerance .* at least 0"),
        ({"a": SAMPLES}, {"a": SAMPLES}, {}, TypeError, "a level must be a number"),
        ({-1.0: SAMPLES}, {-1.0: SAMPLES}, {}, ValueError, "a level .* at least 0"),
        ({0.0: SAMPLES}, {0.0: SAMPLES[:3]}, {}, ValueError, r"same samples, got .*\(3,"),
        ({0.0: SAMPLES.log()}, {0.0: SAMPLES}, {}, ValueError, "must be finite"),
        (CLEAN, ATTACKED, {"reference": CLEAN[0.1] + 9}, ValueError, "tolerance .* none of"),
        (list(CLEAN), ATTACKED, {}, TypeError, "accuracy must be a mapping .* got list"),
        (CLEAN, None, {}, TypeError, "robustness must be a mapping .* got NoneType"),
        (CLEAN, ATTACKED, {"tolerance": True}, TypeError, "tolerance must be a number"),
        (CLEAN, ATTACKED, {"tolerance": float("nan")}, ValueError, "tolerance must be fi"),
        ({0.0: "a"}, {0.0: SAMPLES}, {}, TypeError, "must be a real number .*, got 'a'"),
        ({0.0: SAMPLES + 0j}, {0.0: SAMPLES}, {}, TypeError, "must be a real number .*, got t"),
        ({0.0: SAMPLES[:0]}, {0.0: SAMPLES[:0]}, {}, ValueError, r"got shape \(0,\)"),
        ({0.0: SAMPLES, "a": 1}, {0.0: SAMPLES}, {}, ValueError, r"same levels, .*\[0.0, 'a'\]"),
        ({0.0: SAMPLES[None]}, {0.0: SAMPLES}, {}, ValueError, r"got shape \(1, 12\)"),
    ],
)  # fmt: skip
def test_refuses(clean, attacked, options, error, message):
    with pytest.raises(error, match=message):
        dj.choose_sigma(clean, attacked, **options)
