"""Optimizers compared with their definitions in NumPy, step by step; groups, Lookahead and devices."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import methods, optimizer, recipes, sharding
from jaxclip.config import GroupConfig, MeshConfig, OptimizerConfig
from jaxclip.lookahead import lookahead
from jaxclip.parsing import parse

SIZES = {"width": 8, "layers": 2, "heads": 2}
TINY = {
    "name": "clip",
    "embed_dim": 4,
    "image": {"image_size": 16, "patch_size": 8} | SIZES,
    "text": {"vocab_size": 11, "context_length": 5} | SIZES,
}


def config(**keys) -> OptimizerConfig:
    return OptimizerConfig(**({"learning_rate": 1e-3, "warmup_steps": 0} | keys))


def test_gains_and_biases_and_the_temperature_are_not_decayed_and_all_else_is():
    params = jax.eval_shape(lambda: methods.init_variables(methods.from_config(TINY), jax.random.key(0))[0])
    names = {True: set(), False: set()}
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        name = optimizer.name_of(path)
        names[optimizer.weight_decay(name, config(weight_decay=0.1)) == 0.1].add(name)
    norms = {"image": ("ln_pre", "ln_post"), "text": ("ln_final",)}
    blocks = [f"{tower}/transformer/blocks" for tower in norms]
    assert names[False] == (
        {"logit_scale"}
        | {f"{tower}/{norm}/{part}" for tower in norms for norm in norms[tower] for part in ("scale", "bias")}
        | {f"{block}/{norm}/{part}" for block in blocks for norm in ("ln_1", "ln_2") for part in ("scale", "bias")}
        | {f"{block}/{name}_bias" for block in blocks for name in ("qkv", "attention_out", "mlp_in", "mlp_out")}
    )
    assert names[True] == (
        {"image/patch_kernel", "image/class_embedding", "image/positions", "image_projection/kernel"}
        | {"text/token_embedding", "text/positions", "text_projection/kernel"}
        | {f"{block}/{name}_kernel" for block in blocks for name in ("qkv", "attention_out", "mlp_in", "mlp_out")}
    )


def rate_at(config: OptimizerConfig, step: int, steps: int) -> float:
    return config.learning_rate * (1 + math.cos(math.pi * (step - 1) / steps)) / 2


def decay_of(name: str, config: OptimizerConfig) -> float:
    return config.weight_decay if name.endswith("kernel") else 0.0


def defined(params, gradients, config: OptimizerConfig, steps: int):
    """The definitions, on the global norm's clipped gradients, in float64.

    Adam and AdamW: Loshchilov and Hutter 2019, algorithm 2. SGD: torch.optim.SGD's documentation, dampening 0.
    """
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    for step, gradient in enumerate(gradients, 1):
        norm = math.sqrt(sum(np.sum(value**2) for value in gradient.values()))
        shrink = min(1, config.clip_norm / norm) if config.clip_norm else 1
        rate = rate_at(config, step, steps)
        for name, value in gradient.items():
            decay = decay_of(name, config) * params[name]
            value = shrink * value + (0 if config.name == "adamw" else decay)
            if config.name == "sgd":
                first[name] = update = config.beta1 * first[name] + value
            else:
                first[name] = config.beta1 * first[name] + (1 - config.beta1) * value
                second[name] = config.beta2 * second[name] + (1 - config.beta2) * value**2
                mean, square = first[name] / (1 - config.beta1**step), second[name] / (1 - config.beta2**step)
                update = mean / (np.sqrt(square) + config.eps) + (decay if config.name == "adamw" else 0)
            params = params | {name: params[name] - rate * update}
    return params


def draws(count: int):
    """Parameters, and gradients that grow from one step to the next, so that clipping has an effect."""
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


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
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
def test_updates_are_those_of_the_definition(name, keys):
    params, gradients = draws(4)
    settings = config(learning_rate=0.1, name=name, **keys)
    found, expected = updated(params, gradients, settings, 8), defined(params, gradients, settings, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), found, expected)


def test_the_default_is_the_chain_of_optax_to_the_bit():
    """Whatever else the optimizer can do costs nothing and rounds nothing if it is not asked for."""
    params, gradients = jax.tree.map(np.float32, draws(4))
    ours = optimizer.create(config(), 8)
    mask = {"mlp_kernel": True, "mlp_bias": False, "logit_scale": False}
    theirs = optax.chain(
        optax.scale_by_adam(0.9, 0.98, 1e-6),
        optax.add_decayed_weights(0.2, mask=mask),
        optax.scale_by_learning_rate(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 0, 8)),
    )
    state, expected_state = ours.init(params), theirs.init(params)
    # A run's checkpoint of the version before has this structure.
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)
    update, expected_update = jax.jit(ours.update), jax.jit(theirs.update)
    for gradient in gradients:
        found, state = update(gradient, state, params, rate=np.float32(1))
        expected, expected_state = expected_update(gradient, expected_state, params)
        jax.tree.map(np.testing.assert_array_equal, (found, state), (expected, expected_state))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_plateaus_rate_multiplies_the_updates(name):
    params, gradients = jax.tree.map(np.float32, draws(1))
    transformation = optimizer.create(config(name=name, clip_norm=1.0), 8)
    state = transformation.init(params)
    whole, _ = transformation.update(gradients[0], state, params)
    half, _ = transformation.update(gradients[0], state, params, rate=np.float32(0.5))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(0.5 * a, b), whole, half)


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


# ----------------------------------------------------------------------------------------------- Lookahead


def test_lookahead_is_the_papers_loop():
    """Zhang et al. 2019, algorithm 1, with SGD without momentum for the fast weights."""
    params, gradients = draws(7)
    settings = {
        "learning_rate": 0.01,
        "name": "sgd",
        "beta1": 0.0,
        "weight_decay": 0.0,
        "schedule": {"name": "constant"},
    }
    found = updated(params, gradients, config(lookahead=(3, 0.4), **settings), 7)
    slow = fast = params
    for step, gradient in enumerate(gradients, 1):
        fast = {name: fast[name] - 0.01 * gradient[name] for name in fast}
        if step % 3 == 0:
            slow = fast = {name: slow[name] + 0.4 * (fast[name] - slow[name]) for name in fast}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), found, fast)


def test_lookahead_with_the_whole_step_is_the_fast_optimizer():
    params, gradients = draws(5)
    found, expected = (updated(params, gradients, config(lookahead=pair), 8) for pair in ((2, 1.0), (0, 0.0)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expected)


def test_slow_weights_start_from_the_parameters_of_the_first_step():
    """Weights that a run starts from are put in after the optimizer was made."""
    transformation = lookahead(1, 0.5)
    start, params, step = ({"kernel": jnp.full((2,), value)} for value in (9.0, 1.0, 0.5))
    updates, state = transformation.update(step, transformation.init(start), params)
    assert np.array_equal(state.slow["kernel"], [1.25, 1.25]) and np.array_equal(updates["kernel"], [0.25, 0.25])


# ---------------------------------------------------------------------------------------------------- Muon


def orthogonalized(matrix):
    """Newton-Schulz in float64 (Jordan 2024, "Muon: An optimizer for hidden layers")."""
    flipped = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if flipped else matrix
    x = x / np.linalg.norm(x)
    for _ in range(5):
        product = x @ x.T
        x = 3.4445 * x + (-4.7750 * product + 2.0315 * product @ product) @ x
    return x.T if flipped else x


def test_muon_orthogonalizes_each_layers_matrix_and_leaves_the_rest_to_adamw():
    rng = np.random.default_rng(0)
    shapes = {
        "image/patch_kernel": (6, 4),
        "image/conv1_kernel": (3, 3, 3, 4),
        "image/positions": (5, 4),
        "image_projection/kernel": (4, 3),
        "text/token_embedding": (7, 4),
        "text/transformer/blocks/mlp_in_kernel": (3, 4, 6),
        "text/transformer/blocks/mlp_in_bias": (3, 6),
        "logit_scale": (),
    }
    params, gradients = ({name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(2))
    muon, adamw = (updated(params, [gradients], config(name=name, learning_rate=0.1), 8) for name in ("muon", "adamw"))
    matrices = {"image_projection/kernel", "text/transformer/blocks/mlp_in_kernel"}
    for name, start in params.items():
        if name not in matrices:
            np.testing.assert_array_equal(muon[name], adamw[name], err_msg=name)
            continue
        layers = gradients[name].reshape(-1, *shapes[name][-2:])
        update = np.stack([orthogonalized(layer) for layer in layers]).reshape(shapes[name])
        expected = start - 0.1 * (0.2 * math.sqrt(max(shapes[name][-2:])) * update + 0.2 * start)
        np.testing.assert_allclose(muon[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_muons_matrices_are_those_of_the_towers_layers():
    resnet = {"name": "modified_resnet", "image_size": 32, "width": 2, "layers": (1, 1, 1, 1)}
    found = {}
    for method in (TINY, TINY | {"image": resnet}):
        params = methods.abstract_variables(methods.from_config(method))[0]
        leaves = jax.tree_util.tree_leaves_with_path(optimizer.matrices(params))
        found |= {optimizer.name_of(path): is_matrix for path, is_matrix in leaves}
    layers = {f"{name}_kernel" for name in ("qkv", "attention_out", "mlp_in", "mlp_out")}
    expected = {f"{tower}/transformer/blocks/{layer}" for tower in ("image", "text") for layer in layers}
    pool = {name for name in found if name.startswith("image/") and name.endswith("_kernel") and "pool" in name}
    assert {name for name, is_matrix in found.items() if is_matrix} == expected | pool | {
        "image_projection/kernel",
        "text_projection/kernel",
    }


# -------------------------------------------------------------------------------------------------- groups

STACKED = {"text/blocks/mlp_in_kernel": (3, 2, 2), "text/blocks/ln_1/scale": (3, 2), "image/positions": (2, 2)}


def grouped(name: str = "adamw", groups: tuple[GroupConfig, ...] = (), **keys):
    """How far one update moves each parameter of `STACKED`, whose gradients are all 1, without decay unless asked."""
    settings = config(name=name, learning_rate=0.1, eps=1e-9, groups=groups, **({"weight_decay": 0.0} | keys))
    params = {path: np.full(shape, 2.0) for path, shape in STACKED.items()}
    moved = updated(params, [jax.tree.map(np.ones_like, params)], settings, 1)
    return {path: params[path] - moved[path] for path in params}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_groups_rate_is_a_factor_on_its_updates_and_the_first_match_wins(name):
    found = grouped(name, (GroupConfig("scale$", 0.5), GroupConfig("^text/", 0.1), GroupConfig("scale", 0.3)))
    expected = {"text/blocks/mlp_in_kernel": 0.01, "text/blocks/ln_1/scale": 0.05, "image/positions": 0.1}
    for path, values in found.items():
        np.testing.assert_allclose(values, expected[path], rtol=1e-5)


def test_a_group_has_its_own_decay_and_may_decay_gains():
    groups = (GroupConfig("scale$", weight_decay=0.5, decay_all=True), GroupConfig("^text/", weight_decay=0.0))
    found = grouped(groups=groups, weight_decay=0.2)
    expected = {
        "text/blocks/mlp_in_kernel": 1.0,
        "text/blocks/ln_1/scale": 1 + 0.5 * 2,
        "image/positions": 1 + 0.2 * 2,
    }
    for path, values in found.items():
        np.testing.assert_allclose(values, 0.1 * expected[path], rtol=1e-5)


def test_a_groups_decay_is_the_optimizers_by_default():
    groups = (GroupConfig("scale$", decay_all=True), GroupConfig("kernel$", rate=0.5))
    found = grouped(groups=groups, weight_decay=0.2)
    expected = {"text/blocks/mlp_in_kernel": 0.7, "text/blocks/ln_1/scale": 1.4, "image/positions": 1.4}
    for path, values in found.items():
        np.testing.assert_allclose(values, 0.1 * expected[path], rtol=1e-5)


def test_the_lower_a_stacked_layer_the_less_it_moves():
    found = grouped(groups=(GroupConfig("blocks/", rate=0.5, layer_decay=0.5),))
    for path in ("text/blocks/mlp_in_kernel", "text/blocks/ln_1/scale"):
        for layer, share in enumerate((0.125, 0.25, 0.5)):
            np.testing.assert_allclose(found[path][layer], 0.1 * share, rtol=1e-5)
    np.testing.assert_allclose(found["image/positions"], 0.1, rtol=1e-5)


def test_groups_of_rate_one_change_nothing():
    plain, ruled = grouped(weight_decay=0.2), grouped(groups=(GroupConfig("^text/"),), weight_decay=0.2)
    jax.tree.map(np.testing.assert_array_equal, plain, ruled)


def test_layer_decay_is_beits():
    """Bao et al. 2022, get_num_layer_for_vit: decay ** (layers + 1 - id); id 0 the embedding, block i has i + 1."""
    layers, decay = 2, 0.5
    given = {"learning_rate": 0.1, "eps": 1e-9, "warmup_steps": 0, "weight_decay": 0.0}
    settings = parse(OptimizerConfig, given | {"groups": recipes.layer_decay("image", decay, layers)})
    shapes = methods.abstract_variables(methods.from_config(TINY))[0]
    optimizer.check_groups(shapes, settings.groups)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    transformation = optimizer.create(settings, 1)
    ones = jax.tree.map(np.ones_like, params)
    updates, _ = transformation.update(ones, transformation.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = optimizer.name_of(path)
        if name.startswith("image/transformer/blocks/"):
            shares = [decay**2, decay**1]
        elif name.startswith("image/") and not name.startswith("image/ln_post"):
            shares = [decay**3]
        else:
            shares = [1.0]
        parts = np.split(np.asarray(update), len(shares)) if update.ndim else [update]
        for part, share in zip(parts, shares, strict=True):
            np.testing.assert_allclose(part, -0.1 * share, rtol=1e-5, err_msg=name)


def test_the_metrics_have_the_learning_rate_of_each_group_that_is_trained_at_another():
    groups = (
        GroupConfig("^a", 0.1),
        GroupConfig("^b", 0.0),
        GroupConfig("^c", weight_decay=0.0),
        GroupConfig("^d", 2.0),
    )
    settings = config(learning_rate=1e-3, warmup_steps=10, groups=groups)
    found = optimizer.rates(settings, 100, 5)
    assert found == pytest.approx({"learning_rate": 5e-4, "learning_rate/^a": 5e-5, "learning_rate/^d": 1e-3})
    assert optimizer.rates(settings, 100, 5, rate=0.5) == pytest.approx(
        {name: rate / 2 for name, rate in found.items()}
    )


# ------------------------------------------------------------------------------------------------- devices

EVERY = {
    "adamw": {},
    "adam": {"name": "adam"},
    "sgd": {"name": "sgd"},
    "muon": {"name": "muon"},
    "lookahead": {"lookahead": (2, 0.5)},
    "muon, lookahead, groups, clipping": {
        "name": "muon",
        "lookahead": (2, 0.5),
        "clip_norm": 1.0,
        "groups": (GroupConfig("^image/", 0.0), GroupConfig("blocks/", 0.5, layer_decay=0.5)),
    },
}


def on_devices(devices: int, keys) -> tuple:
    """Three updates of a small CLIP by made-up gradients; the parameters and the state on the devices."""
    mesh = sharding.create(MeshConfig(fsdp=devices), jax.devices()[:devices])
    shapes = methods.abstract_variables(methods.from_config(TINY))[0]
    transformation = optimizer.create(config(learning_rate=1e-2, **keys), 10)

    def drawn(seed: int):
        rng = np.random.default_rng(seed)
        values = jax.tree.map(lambda leaf: np.float32(rng.standard_normal(leaf.shape)), shapes)
        return jax.device_put(values, sharding.state_shardings(mesh, values))

    params = drawn(0)
    places = sharding.state_shardings(mesh, jax.eval_shape(transformation.init, params))
    state = jax.jit(transformation.init, out_shardings=places)(params)

    def apply(gradients, state, params):
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    apply = jax.jit(apply, out_shardings=(sharding.state_shardings(mesh, params), places))
    for seed in range(1, 4):
        params, state = apply(drawn(seed), state, params)
    return params, state


@pytest.mark.parametrize("keys", EVERY.values(), ids=EVERY)
def test_updates_do_not_depend_on_the_devices_and_all_of_the_state_has_a_place(keys):
    (one, _), (eight, state) = on_devices(1, keys), on_devices(8, keys)
    # Sums over matrices, in another order: a few roundings, which Newton-Schulz multiplies by up to 3.4 five times.
    size = {"rtol": 1e-4, "atol": 1e-5} if "muon" in keys.values() else {"rtol": 1e-6, "atol": 1e-7}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **size), one, eight)
    places = {optimizer.name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(eight)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        owner = [name for name in places if optimizer.name_of(path).endswith(f"/{name}")]
        if owner and leaf.ndim:
            assert leaf.sharding == places[max(owner, key=len)].sharding, optimizer.name_of(path)
