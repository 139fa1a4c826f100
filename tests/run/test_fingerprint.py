"""Fingerprints of arrays: equal on any mesh and by either way of summing, different after any change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip.checkpoint import fingerprint
from jaxclip.checkpoint.fingerprint import fingerprints


def bits(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Random bits, NaNs and infinities among them."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    values = rng.integers(0, 256, count, np.uint8)
    return (values & 1).astype(bool).reshape(shape) if dtype == "bool" else values.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "float64", "bool"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (8, 3), (16, 1, 5), (2, 8, 70_000)])
def test_devices_and_hosts_sum_alike(shape, dtype):
    with jax.enable_x64(True):
        array = jnp.asarray(bits(shape, dtype))
        (by_device,) = fingerprint._sums({"a": array}).values()
        assert fingerprints({"a": array}) == {"a": f"{int(by_device):08x}"}


@pytest.mark.parametrize("spec", [("data", "fsdp"), (None, ("data", "fsdp")), ("fsdp",), ()])
def test_no_mesh_changes_a_fingerprint(spec):
    values = bits((8, 64, 16), "float32")
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "fsdp"))
    placed = jax.device_put(values, NamedSharding(mesh, PartitionSpec(*spec)))
    expected = fingerprints({"a": jax.device_put(values, jax.devices()[0])})
    assert fingerprints({"a": placed}) == expected
    assert f"{int(fingerprint._sums({'a': placed})['a']):08x}" == expected["a"]


def test_every_bit_of_every_element_counts():
    values = bits((5, 9), "uint32")
    expected = fingerprints({"a": jnp.asarray(values)})
    for place in np.ndindex(values.shape):
        for bit in range(32):
            changed = values.copy()
            changed[place] ^= np.uint32(1 << bit)
            assert fingerprints({"a": jnp.asarray(changed)}) != expected, (place, bit)


def test_changes_of_several_elements_do_not_cancel_out():
    values = bits((64, 32), "uint32")
    expected = fingerprints({"a": jnp.asarray(values)})
    rng = np.random.default_rng(1)
    changes = {
        "two rows exchanged": lambda a: a.__setitem__([3, 7], a[[7, 3]]),
        "two columns exchanged": lambda a: a.__setitem__((slice(None), [3, 7]), a[:, [7, 3]]),
        "zeros": lambda a: a.__setitem__(slice(10, 12), 0),
        "a row moved on": lambda a: a.__setitem__(5, np.roll(a[5], 1)),
    }
    for name, change in changes.items():
        changed = values.copy()
        change(changed)
        assert fingerprints({"a": jnp.asarray(changed)}) != expected, name
    for _ in range(500):
        changed = values.copy().reshape(-1)
        changed[rng.choice(changed.size, 2, replace=False)] ^= np.uint32(1 << 31)
        assert fingerprints({"a": jnp.asarray(changed.reshape(values.shape))}) != expected


def test_random_keys_have_fingerprints_and_names_their_own():
    found = fingerprints({"a": jax.random.key(5), "b": jax.random.key(1), "c": jnp.zeros(3), "d": -jnp.zeros(3)})
    assert [*found] == ["a", "b", "c", "d"] and len(set(found.values())) == 4
    assert fingerprints({}) == {}
