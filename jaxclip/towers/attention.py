"""Attention in the form that suits the devices and the shape."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from jaxclip.context import Context
from jaxclip.sharding import BATCH
from jaxclip.towers.fused_attention import ROWS, VMEM, Rows, fused_attention, suits

# Widths of a head that cuDNN has on all GPUs with bfloat16.
CUDNN_HEADS = (32, 64, 96, 128)


# The name is for `jaxclip.plan`, which tells by it what cycles are spent on.
@jax.named_scope("attention")
def attend(
    q: Float[Array, "batch queries width"],
    k: Float[Array, "batch keys width"],
    v: Float[Array, "batch keys width"],
    heads: int,
    *,
    causal: bool = False,
    mask: Bool[Array, "batch keys"] | None = None,
    drop: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> Float[Array, "batch queries width"]:
    """Scaled dot-product attention with the logits and their softmax in float32.

    Args:
      q, k, v: projected; `width` is that of all heads together.
      heads: divides `width`.
      causal: query i sees keys up to i.
      mask: the keys that any query may see; None for all.
      drop: dropout of the attention weights, [batch, heads, queries, keys].

    >>> x = jnp.ones((2, 3, 8))
    >>> attend(x, x, x, heads=2, causal=True).shape
    (2, 3, 8)
    """
    batch, queries, width = q.shape
    keys, head_width = k.shape[1], width // heads
    q, k, v = (x.reshape(batch, -1, heads, head_width) for x in (q, k, v))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q * head_width**-0.5, k, preferred_element_type=jnp.float32)
    hidden = jnp.finfo(jnp.float32).min
    if causal:
        logits = jnp.where(jnp.tril(jnp.ones((queries, keys), bool)), logits, hidden)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, hidden)
    weights = drop(jax.nn.softmax(logits, axis=-1).astype(v.dtype))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, queries, width)


@dataclasses.dataclass(frozen=True)
class SelfAttention:
    """Self-attention of a tower's rows of tokens.

    Attributes:
      heads: they divide the width.
      tokens: of a row; what rows have beyond them is padding.
      causal: a token sees those up to itself.
      form: "plain" for `attend`; "kernel" for `fused_attention`; "cudnn" for the kernel of NVIDIA's library.
    """

    heads: int
    tokens: int
    causal: bool = False
    form: Literal["plain", "kernel", "cudnn"] = "plain"

    @classmethod
    def of(
        cls,
        ctx: Context,
        tokens: int,
        width: int,
        heads: int,
        dtype: DTypeLike,
        *,
        causal: bool,
        masked: bool,
        dropped: bool,
    ) -> SelfAttention:
        """The form for the tokens of a tower.

        Args:
          ctx: its `attention` may force the form.
          width, dtype: of the tokens.
          tokens, heads, causal: see above.
          masked: whether each row says which tokens may be seen; cuDNN's form cannot.
          dropped: whether there is dropout, of which only the plain form is capable.
        """
        form: Literal["plain", "kernel", "cudnn"] = "plain"
        if not dropped and ctx.attention != "plain":
            if suits(tokens, width, heads, _memory(ctx)) and (ctx.on_tpu or ctx.attention == "kernel"):
                form = "kernel"
            elif ctx.on_gpu and not masked and jnp.dtype(dtype).itemsize == 2 and width // heads in CUDNN_HEADS:
                form = "cudnn"
        return cls(heads, tokens, causal, form)

    @property
    def padding(self) -> int:
        """How many tokens a row has besides its own: kernels want a multiple of `ROWS`."""
        return 0 if self.form == "plain" else -self.tokens % ROWS

    def padded(self, x: Shaped[Array, "batch tokens *rest"]) -> Shaped[Array, "batch padded *rest"]:
        """x with `padding` behind its tokens, if it does not have it."""
        missing = self.tokens + self.padding - x.shape[1]
        return jnp.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2))) if missing else x

    def outer_bias(self, bias: Float[Array, "width3"]) -> Float[Array, "width3"]:
        """The bias to add to queries, keys and values: without its gradient if the kernel sums that."""
        return jax.lax.stop_gradient(bias) if self.form == "kernel" else bias

    def __call__(
        self,
        qkv: Float[Array, "batch tokens width3"],
        bias: Float[Array, "width3"],
        ctx: Context,
        mask: Bool[Array, "batch tokens"] | None = None,
        drop: Callable[[jax.Array], jax.Array] = lambda weights: weights,
    ) -> Float[Array, "batch tokens width"]:
        """What attention gives.

        Args:
          qkv: queries, keys and values, with `outer_bias` added.
          bias: that bias itself.
          ctx: of the tower.
          mask: the tokens that any may see; None for all.
          drop: dropout of the attention weights, [batch, heads, tokens, tokens].
        """
        if self.form == "kernel":
            return self._kernel(qkv, bias, mask, ctx)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        if self.form == "cudnn":
            return self._cudnn(q, k, v)
        return attend(q, k, v, self.heads, causal=self.causal, mask=mask, drop=drop)

    def _kernel(self, qkv: jax.Array, bias: jax.Array, mask: jax.Array | None, ctx: Context) -> jax.Array:
        rows = Rows(self.tokens, self.causal, mask is not None, interpret=not ctx.on_tpu)
        masks = [] if mask is None else [mask.astype(jnp.int32)[:, None]]

        def fused(qkv: jax.Array, bias: jax.Array, *masks: jax.Array) -> jax.Array:
            return fused_attention(qkv, bias, masks[0] if masks else None, rows)

        if ctx.mesh is None:
            return fused(qkv, bias, *masks)
        # The compiler does not divide a kernel among devices by itself.
        specs = (BATCH, PartitionSpec(), *[BATCH for _ in masks])
        return jax.shard_map(fused, mesh=ctx.mesh, in_specs=specs, out_specs=BATCH, check_vma=False)(qkv, bias, *masks)

    def _cudnn(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        batch, padded, width = q.shape
        q, k, v = (x.reshape(batch, padded, self.heads, width // self.heads) for x in (q, k, v))
        attention = functools.partial(jax.nn.dot_product_attention, is_causal=self.causal, implementation="cudnn")
        if padded == self.tokens or self.causal:
            mixed = attention(q, k, v)
        else:
            lengths = jnp.full((batch,), self.tokens, jnp.int32)
            mixed = attention(q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths)
        return mixed.reshape(batch, padded, width)


def _memory(ctx: Context) -> int:
    """Bytes of a core's own memory: that of a TPU v4 is small, of later ones more than a kernel asks for."""
    return 16 * 2**20 if ctx.device is not None and ctx.device.device_kind == "TPU v4" else VMEM
