"""A few training steps of a method on given batches, each program compiled once."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import optimizer, sharding
from jaxclip.checkpoint import Checkpoints
from jaxclip.config import MeshConfig, OptimizerConfig
from jaxclip.methods import Method
from jaxclip.step import Step, TrainState

Rows = dict[str, jax.Array]


@dataclasses.dataclass(eq=False)
class FewSteps:
    """Steps of a method by Adam, on 1 device or sharded over several.

    Attributes:
      method: what is trained.
      rows: the batch of a number.
      learning_rate: of all steps.
      eps: of Adam. It is large because the division by a gradient that is zero but for rounding would magnify the
        rounding; a model that is to learn much in few steps needs less.
    """

    method: Method
    rows: Callable[[int], Rows]
    learning_rate: float
    eps: float = 1e-3

    @functools.cache  # noqa: B019
    def step_on(self, devices: int) -> Step:
        mesh = sharding.create(MeshConfig(fsdp=min(2, devices)), jax.devices()[:devices])
        config = OptimizerConfig(learning_rate=self.learning_rate, warmup_steps=0, eps=self.eps, weight_decay=0.0)
        return Step(self.method, optimizer.create(config, 100), mesh, precision="float32")

    @functools.cache  # noqa: B019
    def compiled(self, devices: int) -> Any:
        step = self.step_on(devices)
        return step.train.lower(step.abstract_state, self._placed(step, 0)).compile()

    @functools.cache  # noqa: B019
    def first_state(self) -> TrainState:
        return self.step_on(1).init(3)

    def fresh(self, step: Step) -> TrainState:
        # A copy, since a step is donated its state.
        state = jax.tree.map(jnp.copy, self.first_state())
        return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, step.abstract_state))

    def run(self, devices: int, state: TrainState, first: int, last: int) -> tuple[TrainState, list[dict[str, float]]]:
        found = []
        for number in range(first, last):
            state, metrics = self.compiled(devices)(state, self._placed(self.step_on(devices), number))
            found.append({name: float(value) for name, value in metrics.items()})
        return state, found

    @functools.cache  # noqa: B019
    def steps(self, devices: int) -> tuple[TrainState, list[dict[str, float]]]:
        """The state after four steps, and the metrics of each."""
        return self.run(devices, self.fresh(self.step_on(devices)), 0, 4)

    def check_resumption(self, folder: pathlib.Path) -> None:
        """Two steps, a checkpoint and two more are bit for bit the four steps without a break, memory included."""
        step = self.step_on(8)
        state, _ = self.run(8, self.fresh(step), 0, 2)
        checkpoints = Checkpoints(folder, 3)
        checkpoints.save(2, state, {"config": "none"})
        checkpoints.wait()
        state, found = self.run(8, checkpoints.restore(step.abstract_state).state, 2, 4)
        checkpoints.close()
        expected_state, expected = self.steps(8)
        assert found == expected[2:]
        jax.tree.map(np.testing.assert_array_equal, state.memory, expected_state.memory)

    def _placed(self, step: Step, number: int) -> Rows:
        return jax.device_put(self.rows(number), sharding.batch_sharding(step.mesh))
