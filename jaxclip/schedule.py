"""Learning-rate schedules: a warm-up, and then one of the shapes below.

Each is a frozen dataclass whose fields are its keys in `config.optimizer.schedule`, which chooses it by `name`. To add
one, write one more subclass of `Schedule` in this file.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import optax

from jaxclip.config import OptimizerConfig, check_at_least
from jaxclip.errors import UserError
from jaxclip.parsing import parse_named, to_dict


class Schedule(abc.ABC):
    """A linear warm-up from 0 to the peak, followed by what a subclass says.

    A subclass is a frozen dataclass that has a field `name` with a default.
    """

    @abc.abstractmethod
    def after_warmup(self, *, steps: int, warmup: int, peak: float) -> optax.Schedule:
        """A function from the steps done since the warm-up, a number or an array of at least 0, to the learning rate.

        Args:
          steps: length of the run after the warm-up, at least 1.
          warmup: length of the warm-up in steps; 0 if there is none.
          peak: the learning rate at its end.
        """

    def __call__(self, *, steps: int, warmup: int, peak: float) -> optax.Schedule:
        """A function from the steps done to the learning rate, for a run of `steps`, warm-up included."""
        after = self.after_warmup(steps=max(1, steps - warmup), warmup=warmup, peak=peak)
        # Also called within the warm-up, where the steps since then are negative and the result is not used.
        since = lambda step: after(jnp.maximum(step, 0))  # noqa: E731
        return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), since], [warmup])


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine (Loshchilov and Hutter 2017, SGDR, section 3).

    Attributes:
      end: the last learning rate as a share of the peak.
    """

    end: float = 0.0
    name: Literal["cosine"] = "cosine"

    def __post_init__(self):
        _check_share(self, "end")

    def after_warmup(self, *, steps: int, warmup: int, peak: float) -> optax.Schedule:
        return optax.cosine_decay_schedule(peak, steps, alpha=self.end)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """A straight line.

    Attributes:
      end: the last learning rate as a share of the peak.
    """

    end: float = 0.0
    name: Literal["linear"] = "linear"

    def __post_init__(self):
        _check_share(self, "end")

    def after_warmup(self, *, steps: int, warmup: int, peak: float) -> optax.Schedule:
        return optax.linear_schedule(peak, self.end * peak, steps)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The peak to the end of the run."""

    name: Literal["constant"] = "constant"

    def after_warmup(self, *, steps: int, warmup: int, peak: float) -> optax.Schedule:
        return optax.constant_schedule(peak)


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """The peak, and a straight line at the end of the run (Hu et al. 2024, MiniCPM, section 4; Haegele et al. 2024).

    Attributes:
      decay: the share of the run, warm-up included, that the line takes.
      end: the last learning rate as a share of the peak.
    """

    decay: float = 0.2
    end: float = 0.0
    name: Literal["wsd"] = "wsd"

    def __post_init__(self):
        _check_share(self, "decay", "end")

    def after_warmup(self, *, steps: int, warmup: int, peak: float) -> optax.Schedule:
        decay = min(steps, round(self.decay * (steps + warmup)))
        stable = optax.constant_schedule(peak)
        if not decay:
            return stable
        return optax.join_schedules([stable, optax.linear_schedule(peak, self.end * peak, decay)], [steps - decay])


@dataclasses.dataclass(frozen=True)
class Stairs(Schedule):
    """The peak, multiplied by a factor at some places (He et al. 2016, ResNet, section 3.4).

    Attributes:
      at: shares of the run, warm-up included, in increasing order; torchvision's ResNets have 30 and 60 of 90 epochs.
      factor: what the learning rate is multiplied by at each of them.
    """

    at: tuple[float, ...] = (1 / 3, 2 / 3)
    factor: float = 0.1
    name: Literal["stairs"] = "stairs"

    def __post_init__(self):
        _check_share(self, "factor")
        if list(self.at) != sorted(self.at) or not all(0 <= share <= 1 for share in self.at):
            raise UserError(f"at={self.at} must be shares of the run from 0 to 1, in increasing order")

    def after_warmup(self, *, steps: int, warmup: int, peak: float) -> optax.Schedule:
        falls = [max(0, round(share * (steps + warmup)) - warmup) for share in self.at]
        return lambda step: peak * self.factor ** sum(jnp.asarray(step) >= fall for fall in falls)


@dataclasses.dataclass(frozen=True)
class Plateau(Schedule):
    """The peak, times what `plateau` makes of a metric's values; the trainer multiplies the updates by that.

    Attributes:
      metric: `validation_loss`, or NAME/METRIC of an evaluation; with a minus before it, one of which more is better.
      patience: evaluations without improvement after which the learning rate falls.
      factor: what it is multiplied by.
      stop: evaluations without improvement after which the run ends; 0 for never.
    """

    metric: str = "validation_loss"
    patience: int = 5
    factor: float = 0.5
    stop: int = 10
    name: Literal["plateau"] = "plateau"

    def __post_init__(self):
        check_at_least(self, 1, "patience")
        check_at_least(self, 0, "stop")
        _check_share(self, "factor")
        if not self.metric.removeprefix("-"):
            raise UserError(f"metric={self.metric!r} must name a metric, such as validation_loss")

    def after_warmup(self, *, steps: int, warmup: int, peak: float) -> optax.Schedule:
        return optax.constant_schedule(peak)


def plateau(history: Sequence[float], *, patience: int = 5, factor: float = 0.5, stop: int = 10) -> tuple[float, bool]:
    """The factor on the learning rate, and whether to stop, after some evaluations.

    The defaults are ConVIRT's (Zhang et al. 2020, appendix).

    Args:
      history: the metric's values so far, of which less is better. One that is not finite is no improvement.
      patience: the learning rate falls each time that so many values in a row, counted from the best or from the last
        fall, are no improvement.
      factor: what it is multiplied by then.
      stop: the run ends after so many values in a row that are no improvement; 0 for never.

    Example:
      >>> plateau([3.0, 2.0, 2.5, 2.4], patience=2, factor=0.5, stop=4)
      (0.5, False)
    """
    best, waited, rate = math.inf, 0, 1.0
    for value in history:
        improved = math.isfinite(value) and value < best
        best, waited = (value, 0) if improved else (best, waited + 1)
        if waited and waited % patience == 0:
            rate *= factor
        if stop and waited >= stop:
            return rate, True
    return rate, False


def signed(metric: str) -> tuple[str, float]:
    """A metric's name, and the sign that makes less of it better.

    Example:
      >>> signed("validation_loss"), signed("-coco/image_retrieval_recall@5")
      (('validation_loss', 1.0), ('coco/image_retrieval_recall@5', -1.0))
    """
    return (metric[1:], -1.0) if metric.startswith("-") else (metric, 1.0)


def from_config(config: Mapping[str, Any]) -> Any:
    """The schedule that `config["name"]` names, built from the other keys; cosine if there is no name.

    Raises:
      UserError: there is no such schedule, or a key is wrong; the message begins with config.optimizer.schedule.
    """
    return parse_named(Schedule.__subclasses__(), config, "config.optimizer.schedule")


def to_config(schedule: Any) -> dict[str, Any]:
    """Every key of a schedule, as plain JSON values that `from_config` makes it of."""
    return to_dict(schedule)


def warmup_steps(config: OptimizerConfig, steps: int) -> int:
    """The length of the warm-up, at most a tenth of the run of `steps`."""
    return min(config.warmup_steps, steps // 10)


def warmup_note(config: OptimizerConfig, steps: int) -> str:
    """One line if the warm-up is shorter than the config says, otherwise empty."""
    warmup = warmup_steps(config, steps)
    if warmup == config.warmup_steps:
        return ""
    return f"warm-up cut from {config.warmup_steps:,} to {warmup:,} steps, a tenth of the run"


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """A function from the steps done to the learning rate.

    Raises:
      UserError: `config.schedule` is wrong.
    """
    schedule = from_config(config.schedule)
    return schedule(steps=steps, warmup=warmup_steps(config, steps), peak=config.learning_rate)


def _check_share(schedule: Schedule, *names: str) -> None:
    for name in names:
        value = getattr(schedule, name)
        if not 0 <= value <= 1:
            raise UserError(f"{name}={value} must be at least 0 and at most 1")
