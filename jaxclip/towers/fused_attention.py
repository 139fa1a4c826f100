"""Self-attention of short rows of tokens as one kernel for TPUs, forward and backward.

XLA writes the logits of all heads to memory, in layouts that the products before and after do not have. All tokens of
an image or a text fit into the memory of a TPU's core: the kernel reads the fused projections as they lie, writes the
result as the next product reads it, and the logits never leave the core.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

HEAD_WIDTH = 64
LANES = 128
# The registers of a TPU have eight rows: with a multiple of them, [batch, tokens, width] is [batch * tokens, width] as
# it lies.
ROWS = 8
MOST_TOKENS = 640
# Of the core's own memory: more than the compiler grants by itself.
VMEM = 64 * 2**20
# Of a logit that is not seen. Finite, so that no difference of two is NaN.
UNSEEN = -1e30


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a kernel is compiled for.

    Attributes:
      keys: tokens that may be seen; what a row has beyond them is padding.
      causal: a token sees those up to itself.
      masked: whether each row says which tokens may be seen.
      interpret: run without a TPU.
    """

    keys: int
    causal: bool = False
    masked: bool = False
    interpret: bool = False


def suits(tokens: int, width: int, heads: int, memory: int = VMEM) -> bool:
    """Whether the kernel is made for such rows: heads of width 64, an even number of them, few tokens.

    `memory` is that of a core, in bytes. Twice qkv, its gradient, the result and its gradient are in it: the next row's
    are fetched while these are computed.
    """
    held = 2 * 8 * tokens * width * 2
    return width == heads * HEAD_WIDTH and heads % 2 == 0 and tokens <= MOST_TOKENS and held <= memory


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def fused_attention(
    qkv: Float[Array, "batch tokens width3"],
    bias: Float[Array, "width3"],
    mask: Int32[Array, "batch 1 tokens"] | None,
    rows: Rows,
) -> Float[Array, "batch tokens width"]:
    """Scaled dot-product attention of heads of width 64, with the logits and their softmax in float32.

    Args:
      qkv: queries, keys and values of all heads, one behind the other, with their biases in them; the number of tokens
        is a multiple of `ROWS`.
      bias: the bias that is in `qkv` without its gradient, which arrives here: the kernel sums it as it goes.
      mask: 1 where a token may be seen, else 0; None unless `rows.masked`.
      rows: the rest.
    """
    return _forward(qkv, mask, rows)


def _dot(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
    return lax.dot_general(a, b, (((over_a,), (over_b,)), ((), ())), preferred_element_type=jnp.float32)


def at_once(tokens: int, pairs: int) -> int:
    """How many pairs of heads are one piece of code; a loop runs over them.

    All would be a little faster, as one pair's products fill the gaps of another's, and take minutes to compile.
    """
    most = pairs if tokens < 256 else 2 if tokens < 512 else 1
    return next(count for count in range(most, 0, -1) if pairs % count == 0)


def _each_pair(pairs: int, tokens: int, body: Any) -> None:
    """body(first lane of the pair) for each pair of heads: two heads of 64 share the 128 lanes of a register."""
    count = at_once(tokens, pairs)
    if count == pairs:
        for pair in range(pairs):
            body(pair * LANES)
        return

    def several(turn: jax.Array, _: None) -> None:
        for pair in range(count):
            body(pl.multiple_of((turn * count + pair) * LANES, LANES))

    lax.fori_loop(0, pairs // count, several, None)


def _tile(ref: Any, lane: Any) -> jax.Array:
    return ref[0, :, pl.ds(lane, LANES)]


def _seen(rows: Rows, tokens: int, mask: Any) -> jax.Array | None:
    """Which logits count, [tokens, tokens]; None for all."""
    if not rows.causal and not rows.masked and rows.keys == tokens:
        return None
    column = lax.broadcasted_iota(jnp.int32, (tokens, tokens), 1)
    seen = column < rows.keys
    if rows.causal:
        # Padding lies behind every token that counts.
        seen = column <= lax.broadcasted_iota(jnp.int32, (tokens, tokens), 0)
    return seen if mask is None else seen & (mask[0, :, :] != 0)


def _exponents(q: jax.Array, k: jax.Array, seen: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """exp(logits - max) of one head, and the reciprocals of their sums."""
    logits = _dot(q, k, 1, 1)
    if seen is not None:
        logits = jnp.where(seen, logits, UNSEEN)
    exponents = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return exponents, 1.0 / jnp.sum(exponents, axis=-1, keepdims=True)


def _scaled(q: jax.Array) -> jax.Array:
    # 1/8 is exact in every dtype.
    return q * jnp.asarray(HEAD_WIDTH**-0.5, q.dtype)


def _forward_kernel(*refs: Any, rows: Rows) -> None:
    qkv, *mask, out = refs
    tokens, width = out.shape[1:]
    first = lax.broadcasted_iota(jnp.int32, (tokens, LANES), 1) < HEAD_WIDTH

    def pair(lane: Any) -> None:
        q, k, v = (_tile(qkv, part * width + lane) for part in range(3))
        q = _scaled(q)
        seen = _seen(rows, tokens, mask[0] if mask else None)

        def head(own: jax.Array) -> jax.Array:
            # Zeros in the lanes of the other head leave it out of the product.
            exponents, scale = _exponents(jnp.where(own, q, jnp.zeros_like(q)), k, seen)
            return _dot(exponents.astype(v.dtype), v, 1, 0) * scale

        out[0, :, pl.ds(lane, LANES)] = jnp.where(first, head(first), head(~first)).astype(out.dtype)

    _each_pair(width // LANES, tokens, pair)


def _backward_kernel(*refs: Any, rows: Rows) -> None:
    qkv, *mask, out, d_out, d_qkv, d_bias = refs
    tokens, width = out.shape[1:]
    first = lax.broadcasted_iota(jnp.int32, (tokens, LANES), 1) < HEAD_WIDTH

    def pair(lane: Any) -> None:
        q, k, v = (_tile(qkv, part * width + lane) for part in range(3))
        o, d_o = _tile(out, lane), _tile(d_out, lane)
        q = _scaled(q)
        seen = _seen(rows, tokens, mask[0] if mask else None)
        product = o.astype(jnp.float32) * d_o.astype(jnp.float32)
        sums = [jnp.zeros(q.shape, jnp.float32)] * 3
        for own in (first, ~first):
            q_own, k_own, d_own = (jnp.where(own, x, jnp.zeros_like(x)) for x in (q, k, d_o))
            exponents, scale = _exponents(q_own, k, seen)
            weights = exponents * scale
            # The softmax's derivative needs sum(weights * d_weights), which is sum(out * d_out).
            row = jnp.sum(jnp.where(own, product, 0.0), axis=-1, keepdims=True)
            d_logits = (weights * (_dot(d_own, v, 1, 1) - row)).astype(q.dtype)
            sums[0] += _dot(d_logits, k_own, 1, 0) * HEAD_WIDTH**-0.5
            sums[1] += _dot(d_logits, q_own, 0, 0)
            sums[2] += _dot(weights.astype(q.dtype), d_own, 0, 0)
        for part, total in enumerate(sums):
            place = pl.ds(part * width + lane, LANES)
            d_qkv[0, :, place] = total.astype(d_qkv.dtype)
            d_bias[0, :, place] = jnp.sum(total, axis=0, keepdims=True)

    _each_pair(width // LANES, tokens, pair)


def _block(tokens: int, width: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, tokens, width), lambda row: (row, 0, 0))


def _name(direction: str, heads: int, rows: Rows) -> str:
    """The name under which `plan` finds what a kernel costs: all that its code depends on but shape and dtype."""
    kind = ("_causal" if rows.causal else "") + ("_masked" if rows.masked else "")
    return f"attention_{direction}_{rows.keys}x{heads}{kind}"


def _forward(qkv: jax.Array, mask: jax.Array | None, rows: Rows) -> jax.Array:
    batch, tokens, width3 = qkv.shape
    width = width3 // 3
    masks = [] if mask is None else [mask]
    return pl.pallas_call(
        functools.partial(_forward_kernel, rows=rows),
        grid=(batch,),
        in_specs=[_block(tokens, width3), *[_block(1, tokens) for _ in masks]],
        out_specs=_block(tokens, width),
        out_shape=jax.ShapeDtypeStruct((batch, tokens, width), qkv.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=VMEM),
        interpret=rows.interpret,
        name=_name("forward", width // HEAD_WIDTH, rows),
    )(qkv, *masks)


def _saved(qkv: jax.Array, bias: jax.Array, mask: jax.Array | None, rows: Rows) -> tuple[jax.Array, tuple]:
    out = _forward(qkv, mask, rows)
    return out, (qkv, mask, out)


def _backward(rows: Rows, saved: tuple, d_out: jax.Array) -> tuple:
    qkv, mask, out = saved
    batch, tokens, width3 = qkv.shape
    width = width3 // 3
    masks = [] if mask is None else [mask]
    d_qkv, d_bias = pl.pallas_call(
        functools.partial(_backward_kernel, rows=rows),
        grid=(batch,),
        in_specs=[
            _block(tokens, width3),
            *[_block(1, tokens) for _ in masks],
            _block(tokens, width),
            _block(tokens, width),
        ],
        out_specs=[_block(tokens, width3), _block(1, width3)],
        out_shape=[
            jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
            jax.ShapeDtypeStruct((batch, 1, width3), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=VMEM),
        interpret=rows.interpret,
        name=_name("backward", width // HEAD_WIDTH, rows),
    )(qkv, *masks, out, d_out)
    return d_qkv, jnp.sum(d_bias, axis=(0, 1)), None


fused_attention.defvjp(_saved, _backward)
