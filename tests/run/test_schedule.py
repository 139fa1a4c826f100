"""Schedules at chosen steps, with warm-up, and the plateau's rule on constructed histories."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import schedule
from jaxclip.config import OptimizerConfig
from jaxclip.errors import UserError

PEAK = 5e-4


def config(warmup: int, **keys) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=PEAK, warmup_steps=warmup, **({"schedule": keys} if keys else {}))


# (keys, warm-up, steps, step, share of the peak).
CASES = {
    "starts at nothing": ({}, 100, 1000, 0, 0.0),
    "half way up": ({}, 100, 1000, 50, 0.5),
    "at the peak": ({}, 100, 1000, 100, 1.0),
    "a third of the way down": ({}, 100, 1000, 400, 0.75),
    "half way down": ({}, 100, 1000, 550, 0.5),
    "two thirds of the way down": ({}, 100, 1000, 700, 0.25),
    "at the end": ({}, 100, 1000, 1000, 0.0),
    "and stays there": ({}, 100, 1000, 2000, 0.0),
    "no warm-up starts at the peak": ({}, 0, 1000, 0, 1.0),
    "no warm-up, half way down": ({}, 0, 1000, 500, 0.5),
    # The paper's 2000 steps in a run of 500 become 50.
    "a short run's warm-up is a tenth of it": ({}, 2000, 500, 50, 1.0),
    "a short run's warm-up is half done": ({}, 2000, 500, 25, 0.5),
    "a short run still ends at nothing": ({}, 2000, 500, 500, 0.0),
    "a run of five steps has no warm-up": ({}, 2000, 5, 0, 1.0),
    "a run of one step takes it at the peak": ({}, 2000, 1, 0, 1.0),
    "cosine to a tenth, half way": ({"name": "cosine", "end": 0.1}, 100, 1000, 550, 0.55),
    "cosine to a tenth, at the end": ({"name": "cosine", "end": 0.1}, 100, 1000, 1000, 0.1),
    "linear, half way up": ({"name": "linear"}, 100, 1000, 50, 0.5),
    "linear, a third of the way down": ({"name": "linear"}, 100, 1000, 400, 2 / 3),
    "linear, at the end": ({"name": "linear"}, 100, 1000, 1000, 0.0),
    "linear to a tenth, at the end": ({"name": "linear", "end": 0.1}, 100, 1000, 2000, 0.1),
    "constant, half way up": ({"name": "constant"}, 100, 1000, 50, 0.5),
    "constant, at the end": ({"name": "constant"}, 100, 1000, 1000, 1.0),
    "wsd, half way up": ({"name": "wsd"}, 100, 1000, 50, 0.5),
    "wsd, before the decay": ({"name": "wsd", "decay": 0.2}, 100, 1000, 800, 1.0),
    "wsd, in the decay": ({"name": "wsd", "decay": 0.2}, 100, 1000, 950, 0.25),
    "wsd, at the end": ({"name": "wsd", "decay": 0.2}, 100, 1000, 1000, 0.0),
    "wsd to a half, at the end": ({"name": "wsd", "decay": 0.2, "end": 0.5}, 100, 1000, 1000, 0.5),
    "wsd without a decay": ({"name": "wsd", "decay": 0.0}, 100, 1000, 1000, 1.0),
    "wsd that only decays": ({"name": "wsd", "decay": 1.0}, 100, 1000, 550, 0.5),
    "stairs, half way up": ({"name": "stairs"}, 90, 900, 45, 0.5),
    "stairs, before the first": ({"name": "stairs"}, 90, 900, 299, 1.0),
    "stairs, at the first": ({"name": "stairs"}, 90, 900, 300, 0.1),
    "stairs, without a warm-up": ({"name": "stairs", "at": (0.6, 0.8), "factor": 0.5}, 0, 1000, 799, 0.5),
    "stairs, at the end": ({"name": "stairs", "at": (0.6, 0.8), "factor": 0.5}, 0, 1000, 1000, 0.25),
    "plateau, half way up": ({"name": "plateau"}, 100, 1000, 50, 0.5),
    "plateau, at the end": ({"name": "plateau"}, 100, 1000, 1000, 1.0),
}


@pytest.mark.parametrize(("keys", "warmup", "steps", "step", "share"), CASES.values(), ids=CASES)
def test_learning_rate(keys, warmup, steps, step, share):
    rate = schedule.learning_rate(config(warmup, **keys), steps)
    np.testing.assert_allclose(float(rate(step)), PEAK * share, rtol=1e-5, atol=1e-10)


def test_cosine_is_optax_to_the_bit():
    """The schedule of the version before."""
    found = schedule.learning_rate(config(30), 777)
    expected = optax.warmup_cosine_decay_schedule(0.0, PEAK, 30, 777)
    steps = np.arange(0, 800, 7)
    assert np.array_equal(found(steps), expected(steps))


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_the_learning_rate_rises_and_then_only_falls(name):
    rates = np.array([float(schedule.learning_rate(config(10, name=name), 100)(step)) for step in range(101)])
    assert np.all(np.diff(rates[:11]) > 0) and np.all(np.diff(rates[10:]) < 0)


WRONG = {
    ".name='step' must be one of 'cosine', 'linear', 'constant', 'wsd', 'stairs'": {"name": "step"},
    ".name=3 must be one of": {"name": 3},
    ".ends is not a key; did you mean config.optimizer.schedule.end?": {"name": "linear", "ends": 0.1},
    ".end is not a key": {"name": "constant", "end": 0.1},
    ".end=1.5 must be at least 0 and at most 1": {"name": "cosine", "end": 1.5},
    ".decay=nan must be at least 0 and at most 1": {"name": "wsd", "decay": math.nan},
    ".decay='all' must be a number": {"name": "wsd", "decay": "all"},
    ".at=(0.8, 0.6) must be shares of the run from 0 to 1, in increasing order": {"name": "stairs", "at": (0.8, 0.6)},
    ".patience=0 must be at least 1": {"name": "plateau", "patience": 0},
    ".stop=-1 must not be negative": {"name": "plateau", "stop": -1},
    ".metric='-' must name a metric": {"name": "plateau", "metric": "-"},
}


@pytest.mark.parametrize(("said", "keys"), WRONG.items(), ids=list(WRONG))
def test_a_mistake_is_one_line_that_names_the_key(said, keys):
    with pytest.raises(UserError) as error:
        schedule.from_config(keys)
    assert str(error.value).startswith(f"config.optimizer.schedule{said}") and "\n" not in str(error.value)


def test_keys_that_are_not_given_have_their_defaults():
    assert schedule.from_config({}) == schedule.Cosine(end=0.0)
    assert schedule.to_config(schedule.from_config({"name": "wsd"})) == {"name": "wsd", "decay": 0.2, "end": 0.0}


def test_a_schedule_is_added_by_one_class():
    """Its name is known as soon as it is defined: nothing else lists the schedules."""

    @dataclasses.dataclass(frozen=True)
    class InverseSquareRoot(schedule.Schedule):
        timescale: int = 300
        name: Literal["inverse_square_root"] = "inverse_square_root"

        def after_warmup(self, *, steps, warmup, peak):
            # Steps before the warm-up's end would be a division by zero here.
            return lambda step: peak * (self.timescale / (self.timescale + step)) ** 0.5

    # The class's annotations are resolved in this module, which is where it is defined.
    rate = schedule.learning_rate(config(100, name="inverse_square_root", timescale=100), 1000)
    assert [float(rate(step)) for step in (0, 50, 100, 400)] == pytest.approx([0, PEAK / 2, PEAK, PEAK / 2])


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("name", [kind.name for kind in schedule.Schedule.__subclasses__()])
def test_a_rate_is_the_same_for_a_number_and_for_an_array(name, warmup):
    rate = schedule.learning_rate(config(warmup, name=name), 100)
    found = [float(rate(step)) for step in range(120)]
    np.testing.assert_allclose(found, jax.vmap(rate)(jnp.arange(120)), rtol=1e-5, atol=1e-9)
    assert np.isfinite(found).all() and min(found) >= 0 and max(found) == pytest.approx(PEAK)


@pytest.mark.parametrize(
    ("warmup", "steps", "length", "said"),
    [
        (2000, 20_000, 2000, ""),
        (2000, 1200, 120, "warm-up cut from 2,000 to 120 steps, a tenth of the run"),
        (100, 5, 0, "warm-up cut from 100 to 0 steps, a tenth of the run"),
        (0, 5, 0, ""),
    ],
)
def test_a_shortened_warm_up_is_reported(warmup, steps, length, said):
    assert schedule.warmup_steps(config(warmup), steps) == length
    assert schedule.warmup_note(config(warmup), steps) == said


NEVER, WORSE = (3.0, 2.0, 1.0), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
HISTORIES = {
    "no evaluation": ((), 1.0, False),
    "always better": (NEVER, 1.0, False),
    "one short of the patience": (WORSE[:2], 1.0, False),
    "the patience is over": (WORSE[:3], 0.5, False),
    "twice": (WORSE[:5], 0.25, False),
    "stopped": (WORSE[:6], 0.25, True),
    "stopped for good": ((*WORSE, 0.5), 0.25, True),
    "better in between": ((1.0, 2.0, 0.5, 2.0), 1.0, False),
    "the factor stays when it gets better": ((1.0, 2.0, 2.0, 0.5, 0.4), 0.5, False),
    "equal is not better": ((1.0, 1.0, 1.0), 0.5, False),
    "not a number is not better": ((1.0, math.nan, math.nan), 0.5, False),
    "minus infinity is not better": ((1.0, -math.inf, -math.inf), 0.5, False),
    "nothing finite at all": ((math.nan, math.inf), 0.5, False),
}


@pytest.mark.parametrize(("history", "rate", "stop"), HISTORIES.values(), ids=HISTORIES)
def test_plateau(history, rate, stop):
    assert schedule.plateau(history, patience=2, factor=0.5, stop=5) == (rate, stop)


def test_plateau_without_a_stop_only_lowers_the_rate():
    assert schedule.plateau(WORSE, patience=2, factor=0.1, stop=0) == (pytest.approx(1e-3), False)


def test_the_plateaus_defaults_are_convirts():
    """Zhang et al. 2020: half the rate after 5 evaluations without improvement, the end after 10."""
    assert schedule.plateau([1.0] * 5) == (1.0, False)
    assert schedule.plateau([1.0] * 6) == (0.5, False)
    assert schedule.plateau([1.0] * 11) == (0.25, True)
    keys = schedule.to_config(schedule.Plateau())
    assert (keys["metric"], keys["patience"], keys["factor"], keys["stop"]) == ("validation_loss", 5, 0.5, 10)


def test_a_minus_is_for_metrics_of_which_more_is_better():
    assert schedule.signed("loss") == ("loss", 1.0)
    assert schedule.signed("-acc1") == ("acc1", -1.0)
