"""The optimizer is AdamW with CLIP's figures: checked against its definition, one step after the other."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from jaxclip import methods, optimizer
from jaxclip.config import OptimizerConfig

SIZES = {"width": 8, "layers": 2, "heads": 2}
TINY = {
    "name": "clip",
    "embed_dim": 4,
    "image": {"image_size": 16, "patch_size": 8} | SIZES,
    "text": {"vocab_size": 11, "context_length": 5} | SIZES,
}


def config(**keys) -> OptimizerConfig:
    return OptimizerConfig(**({"learning_rate": 1e-3, "warmup_steps": 0} | keys))


# (warm-up, steps, step, share of the peak).
SCHEDULE = [
    ("starts at nothing", 100, 1000, 0, 0.0),
    ("half way up", 100, 1000, 50, 0.5),
    ("at the peak", 100, 1000, 100, 1.0),
    ("a third of the way down", 100, 1000, 400, 0.75),
    ("half way down", 100, 1000, 550, 0.5),
    ("two thirds of the way down", 100, 1000, 700, 0.25),
    ("at the end", 100, 1000, 1000, 0.0),
    ("and stays there", 100, 1000, 2000, 0.0),
    ("no warm-up starts at the peak", 0, 1000, 0, 1.0),
    ("no warm-up, half way down", 0, 1000, 500, 0.5),
    # The paper's 2000 steps in a run of 500 become 50.
    ("a short run's warm-up is a tenth of it", 2000, 500, 50, 1.0),
    ("a short run's warm-up is half done", 2000, 500, 25, 0.5),
    ("a short run still ends at nothing", 2000, 500, 500, 0.0),
    ("a run of five steps has no warm-up", 2000, 5, 0, 1.0),
    ("a run of one step takes it at the peak", 2000, 1, 0, 1.0),
]


@pytest.mark.parametrize(
    ("warmup", "steps", "step", "share"), [case[1:] for case in SCHEDULE], ids=[c[0] for c in SCHEDULE]
)
def test_schedule(warmup, steps, step, share):
    rate = optimizer.schedule(config(learning_rate=5e-4, warmup_steps=warmup), steps)
    np.testing.assert_allclose(float(rate(step)), 5e-4 * share, rtol=1e-5, atol=1e-10)


def test_the_schedule_rises_and_then_only_falls():
    rates = np.array([float(optimizer.schedule(config(warmup_steps=10), 100)(step)) for step in range(101)])
    assert np.all(np.diff(rates[:11]) > 0) and np.all(np.diff(rates[10:]) < 0)


def test_gains_and_biases_and_the_temperature_are_not_decayed_and_all_else_is():
    params = jax.eval_shape(lambda: methods.init_variables(methods.from_config(TINY), jax.random.key(0))[0])
    leaves = jax.tree_util.tree_leaves_with_path(optimizer.decayed(params))
    names = {True: set(), False: set()}
    for path, decayed in leaves:
        names[decayed].add(jax.tree_util.keystr(path, simple=True, separator="/"))
    norms = {"image": ("ln_pre", "ln_post"), "text": ("ln_final",)}
    blocks = [f"{tower}/transformer/blocks" for tower in norms]
    assert names[False] == (
        {"logit_scale"}
        | {f"{tower}/{norm}/{part}" for tower in norms for norm in norms[tower] for part in ("scale", "bias")}
        | {f"{block}/{norm}/{part}" for block in blocks for norm in ("ln_1", "ln_2") for part in ("scale", "bias")}
        | {f"{block}/{name}_bias" for block in blocks for name in ("qkv", "attention_out", "mlp_in", "mlp_out")}
    )
    assert names[True] == (
        {"image/patch_kernel", "image/class_embedding", "image/positions", "image/projection"}
        | {"text/token_embedding", "text/positions", "text/projection"}
        | {f"{block}/{name}_kernel" for block in blocks for name in ("qkv", "attention_out", "mlp_in", "mlp_out")}
    )


def adamw(params, gradients, config: OptimizerConfig, steps: int):
    """Loshchilov and Hutter 2019, algorithm 2, on the global norm's clipped gradients, in float64."""
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    for step, gradient in enumerate(gradients, 1):
        norm = math.sqrt(sum(np.sum(value**2) for value in gradient.values()))
        shrink = min(1, config.clip_norm / norm) if config.clip_norm else 1
        rate = config.learning_rate * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        for name, value in gradient.items():
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * shrink * value
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * (shrink * value) ** 2
            mean, square = first[name] / (1 - config.beta1**step), second[name] / (1 - config.beta2**step)
            decay = config.weight_decay * params[name] if name.endswith("kernel") else 0
            params = params | {name: params[name] - rate * (mean / (np.sqrt(square) + config.eps) + decay)}
    return params


def draws(count: int):
    """Parameters, and gradients that grow from one step to the next, so that clipping tells."""
    rng = np.random.default_rng(0)
    shapes = {"mlp_kernel": (4, 3), "mlp_bias": (3,), "logit_scale": ()}
    draw = lambda size: {name: size * rng.standard_normal(shape) for name, shape in shapes.items()}  # noqa: E731
    return draw(1.0), [draw(10.0**step) for step in range(-2, count - 2)]


def updated(params, gradients, config: OptimizerConfig, steps: int):
    transformation = optimizer.create(config, steps)
    params, gradients = jax.tree.map(np.float32, (params, gradients))
    state, apply = transformation.init(params), jax.jit(transformation.update)
    for gradient in gradients:
        updates, state = apply(gradient, state, params)
        params = jax.tree.map(lambda value, update: value + np.asarray(update), params, updates)
    return params


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"weight_decay": 0.0},
        {"clip_norm": 1.0},
        {"clip_norm": 1e9},
        {"beta1": 0.5, "beta2": 0.9, "eps": 1e-2, "weight_decay": 0.05},
    ],
    ids=str,
)
def test_updates_are_those_of_the_definition(keys):
    params, gradients = draws(4)
    settings = config(learning_rate=0.1, **keys)
    found, expected = updated(params, gradients, settings, 8), adamw(params, gradients, settings, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), found, expected)


def test_clipping_changes_the_update_only_where_the_norm_is_larger():
    params, gradients = draws(4)
    free, loose, tight = (updated(params, gradients, config(clip_norm=norm), 8) for norm in (0.0, 1e9, 1.0))
    jax.tree.map(np.testing.assert_array_equal, free, loose)
    assert np.abs(free["mlp_kernel"] - tight["mlp_kernel"]).max() > 1e-4


def test_the_figures_are_the_papers():
    """Radford et al. 2021, table 18, for vision transformers."""
    published = OptimizerConfig(learning_rate=5e-4)
    assert (published.beta1, published.beta2, published.eps) == (0.9, 0.98, 1e-6)
    assert (published.weight_decay, published.warmup_steps, published.clip_norm) == (0.2, 2000, 0.0)
