"""Signs of a training that goes wrong: not finite, a spike, a collapse; and the runs that go back and on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from commands import environment, recipe, rows, run

from jaxclip import checkpoint
from jaxclip.watch import NotFinite, Watch, check_finite

FINE = {"loss": 2.0, "grad_norm": 1.0, "finite": 1.0}


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_or_gradient_that_is_not_finite_is_named(name, value):
    check_finite(3, FINE)
    with pytest.raises(NotFinite, match=f"step 3: {name} is {value}"):
        check_finite(3, FINE | {name: value})


def test_a_state_that_is_not_finite_is_noticed_at_its_own_step():
    with pytest.raises(NotFinite, match="step 3: the updated state .* is not finite"):
        check_finite(3, FINE | {"finite": 0.0})


def test_a_spike_is_said_once_and_noise_never():
    rng = np.random.default_rng(0)
    watch, said = Watch(), []
    for step in range(1, 400):
        loss = 3.0 + 0.1 * rng.standard_normal() + (4.0 if 200 <= step < 205 else 0.0)
        said += watch.look(step, FINE | {"loss": loss})
    assert len(said) == 1 and said[0].startswith("step 200: loss 7.") and "a spike" in said[0]


def test_a_falling_or_constant_loss_is_no_spike():
    watch = Watch()
    assert not [line for step in range(300) for line in watch.look(step, FINE | {"loss": 5 * 0.99**step})]
    assert not [line for step in range(300) for line in Watch().look(step, FINE)]


def test_embeddings_that_are_all_alike_are_said():
    watch, said = Watch(), []
    for step in range(1, 20):
        said += watch.look(step, FINE | {"image_spread": 1e-7, "text_spread": 0.4})
    assert len(said) == 1 and said[0].startswith(
        "step 5: the embeddings of all images are alike (image_spread 1.0e-07)"
    )


LOSS = """
import jax.numpy as jnp
import numpy as np
from jaxclip.data import loader
from jaxclip.methods import clip

loss, rows = clip.Method.loss, loader.TrainingLoader.rows


def broken_loss(self, model, batch, ctx):
    value, metrics = loss(self, model, batch, ctx)
    return jnp.where(BROKEN, jnp.nan, value), metrics


clip.Method.loss = broken_loss
"""
# Bad numbers that arise from the data of one step: an id of 10^6 stands for them.
BROKEN_BY_DATA = (
    LOSS.replace("BROKEN", "jnp.max(batch['text_end']) == 10**6")
    + """

def broken_rows(self, position, count):
    made = rows(self, position, count)
    if position // 8 in (2, 5):
        made["text_end"] = np.full_like(made["text_end"], 10**6)
    return made


loader.TrainingLoader.rows = broken_rows
"""
)
BROKEN_BY_ITSELF = LOSS.replace("BROKEN", "ctx.step == 2")


def test_a_run_goes_back_and_on_without_the_data_that_broke_it(tmp_path):
    path = recipe(tmp_path, "config.steps = 8\nconfig.checkpoint_every = 2", patch=BROKEN_BY_DATA)
    command = [f"--config={path}", f"--workdir={tmp_path}/run"]
    for _ in range(2):  # the same data, the same end
        stopped = run(command, environment())
        assert stopped.status == 1
        assert "step 3: loss is nan; nothing after step 2 is saved" in stopped.stderr

    result = run([*command, "--config.on_nonfinite=rewind"], environment())
    assert result.status == 0, result.stderr
    assert "step 3: loss is nan; going on from step 2, without the 1 batches since" in result.stderr
    assert "step 5: loss is nan; going on from step 4, without the 1 batches since" in result.stderr
    assert [row["step"] for row in rows(tmp_path / "run")] == [*range(1, 9)]
    assert all(row["loss"] is not None for row in rows(tmp_path / "run"))


def test_a_run_that_breaks_whatever_data_it_gets_ends(tmp_path):
    rewinding = "config.steps = 8\nconfig.checkpoint_every = 2\nconfig.on_nonfinite = 'rewind'"
    path = recipe(tmp_path, rewinding, patch=BROKEN_BY_ITSELF)
    result = run([f"--config={path}", f"--workdir={tmp_path}/run"], environment())
    assert result.status == 1
    assert result.stderr.count("going on from step 2") == 3
    assert "step 3: loss is nan for the 4th time since step 2; nothing after step 2 is saved" in result.stderr


def test_what_the_message_advises_can_be_done(tmp_path):
    """The learning rate of a run is lowered on its way, which is then its own."""
    path = recipe(tmp_path, "config.steps = 4\nconfig.checkpoint_every = 2")
    command = [f"--config={path}", f"--workdir={tmp_path}/run"]
    assert run(command, environment()).status == 0
    longer, lower = "--config.steps=6", "--config.optimizer.learning_rate=1e-4"
    assert run([*command, longer, lower], environment()).status == 2
    result = run([*command, longer, lower, "--allow_change=optimizer.learning_rate"], environment())
    assert result.status == 0, result.stderr
    assert "from step 4 on: config.optimizer.learning_rate 0.0005 → 0.0001" in result.stderr
    assert max(row["learning_rate"] for row in rows(tmp_path / "run") if row["step"] > 4) <= 1e-4
    assert run([*command, longer, lower], environment()).status == 0
    events = checkpoint.load_model(checkpoint.find(tmp_path / "run"))["events"]
    change = {"key": "optimizer.learning_rate", "before": 0.0005, "after": 0.0001}
    assert events == [{"step": 4, "event": "change", **change}]
