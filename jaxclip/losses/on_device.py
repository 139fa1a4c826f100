"""Each device's part of a contrastive loss: sums over the tiles of its block, and the results computed from them.

Notation: s[i, j] = scale * <image i, text j>, B pairs in the batch, w the weight of the direction image -> text.
Softmax:  loss = 1/B sum_i w (R[i] - positive[i]) + (1 - w) (C[i] - positive[i]), where R and C are the logsumexp of a
          row and of a column. A first sweep computes R and C, a second one the gradient
          B dloss/ds = w exp(s - R) + (1 - w) exp(s - C) - target. One product per tile serves both directions.
Sigmoid:  loss = 1/B sum_ij softplus(-z[i, j] (s[i, j] + bias)), z = 1 for i = j, else -1, in a single sweep.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxclip.losses.layouts import Layout, total

Arrays = dict[str, jax.Array]


def softmax_on_device(
    image_weight: float, differentiate: bool, layout: Layout, pairs: Arrays, scalars: Arrays
) -> tuple[tuple, tuple]:
    """One device's part of the softmax loss.

    Args:
      image_weight: the weight of classifying images among texts.
      differentiate: whether to compute the gradients.
      layout: of the matrix on the devices.
      pairs: this device's own rows of the `image` and `text` embeddings and, optionally, of `ids` [n], or of
        `image_record` and `text_record` [n]: entries in which the two are equal do not count.
      scalars: `scale`.

    Returns:
      (loss, accuracy, gradient by the scale), equal on all devices, and this device's own rows of the gradients by both
      embeddings. Without `differentiate`, the gradients are 0 and ().
    """
    rows = layout.rows({key: pairs[key] for key in ("image", "ids", "image_record") if key in pairs})
    columns = layout.columns({key: pairs[key] for key in ("text", "ids", "text_record") if key in pairs})
    dtype = accumulator(pairs["image"])
    batch = _batch(layout, pairs)
    has_ids = "ids" in pairs

    def statistics(rows: Arrays, columns: Arrays, row: Arrays, column: Arrays, counts: jax.Array | None) -> tuple:
        counts = _without_itself(rows, columns, counts)
        _, logits = _logits(rows, columns, scalars["scale"])
        counted = logits if counts is None else jnp.where(counts, logits, -jnp.inf)
        partners = _partners(rows, columns)
        if has_ids:
            positives = partners if counts is None else partners & counts
            row = row | {
                "partners": row["partners"] + jnp.sum(positives, 1, dtype=dtype),
                "positive": row["positive"] + jnp.sum(jnp.where(positives, logits, 0), 1),
            }
        return row | _fold(row, counted, partners, 1), column | _fold(column, counted, partners, 0)

    kinds = ("max", "best_partner", "sum", "rivals")
    row_start = _start(len(rows["image"]), kinds + (("partners", "positive") if has_ids else ()), dtype)
    column_start = _start(len(columns["text"]), kinds, dtype)
    row, column = layout.sweep(
        tile=statistics, rows=rows, columns=columns, row_sums=row_start, column_sums=column_start, merge=_merge
    )
    own_row, own_column = layout.own_rows(row), layout.own_columns(column)

    positive = own_row["positive"] / own_row["partners"] if has_ids else own_row["best_partner"]
    # With ids, the positives of a column differ from those of its row, but their sums over the batch are equal.
    # The difference of the large numbers comes first: it is 0 if the partner is the most similar.
    by_row, by_column = ((own["max"] - positive) + jnp.log(own["sum"]) for own in (own_row, own_column))
    loss = total(layout, jnp.sum(image_weight * by_row + (1 - image_weight) * by_column)) / batch
    accuracy = total(layout, jnp.sum(_hits(own_row) + _hits(own_column))) / (2 * batch)
    if not differentiate:
        return (loss, accuracy, jnp.zeros((), dtype)), ()

    # The entries of the gradient by the logits sum to 0. So a constant may be subtracted from the cosines in the
    # gradient by the scale; the mean positive cosine leaves little to cancel.
    center = total(layout, jnp.sum(pairs["image"].astype(dtype) * pairs["text"].astype(dtype))) / batch

    def gradients(rows: Arrays, columns: Arrays, row: Arrays, column: Arrays, counts: jax.Array | None) -> tuple:
        counts = _without_itself(rows, columns, counts)
        cosines, logits = _logits(rows, columns, scalars["scale"])
        partners = _partners(rows, columns)
        share = 1 / rows["partners"][:, None] if has_ids else 1.0
        # Not exp(s - logsumexp), so that in a block of one tile the exponentials of the statistics are re-used.
        by_logits = jnp.exp(logits - rows["max"][:, None]) * rows["factor"][:, None]
        by_logits += jnp.exp(logits - columns["max"][None, :]) * columns["factor"][None, :]
        by_logits -= jnp.where(partners, share, 0)
        if counts is not None:
            by_logits = jnp.where(counts, by_logits, 0)
        by_scale = row["scale"] + jnp.sum(by_logits * (cosines - center), 1)
        row = {"scale": by_scale} | _add_gradient(row, by_logits, columns["text"], "image")
        return row, _add_gradient(column, by_logits.T, rows["image"], "text")

    def with_statistics(side: Arrays, sums: Arrays, weight: float) -> Arrays:
        return side | {"factor": weight / sums["sum"]} | {key: sums[key] for key in ("max", "partners") if key in sums}

    row_sums, column_sums = layout.sweep(
        tile=gradients,
        rows=with_statistics(rows, row, image_weight),
        columns=with_statistics(columns, column, 1 - image_weight),
        row_sums=_zero_gradient(rows["image"], "image") | {"scale": jnp.zeros(len(rows["image"]), dtype)},
        column_sums=_zero_gradient(columns["text"], "text"),
        merge=None,
    )
    by_scale = total(layout, jnp.sum(row_sums["scale"])) / batch
    return (loss, accuracy, by_scale), _own_gradients(
        layout, row_sums=row_sums, column_sums=column_sums, factor=scalars["scale"] / batch, pairs=pairs
    )


def sigmoid_on_device(
    differentiate: bool, layout: Layout, pairs: Arrays, scalars: Arrays
) -> tuple[tuple[jax.Array, ...], tuple]:
    """One device's part of the sigmoid loss.

    Args:
      differentiate: whether to compute the gradients.
      layout: of the matrix on the devices.
      pairs: this device's own rows of the `image` and `text` embeddings.
      scalars: `scale` and `bias`.

    Returns:
      (loss, gradient by the scale, gradient by the bias), equal on all devices, and this device's own rows of the
      gradients by both embeddings. Without `differentiate`, (loss,) and ().
    """
    rows, columns = layout.rows({"image": pairs["image"]}), layout.columns({"text": pairs["text"]})
    dtype = accumulator(pairs["image"])
    batch = _batch(layout, pairs)

    def tile(rows: Arrays, columns: Arrays, row: Arrays, column: Arrays, counts: jax.Array | None) -> tuple:
        cosines, logits = _logits(rows, columns, scalars["scale"])
        sign = jnp.where(_partners(rows, columns), 1, -1).astype(dtype)
        signed = sign * (logits + scalars["bias"])
        losses = jax.nn.softplus(-signed)
        by_logits = -sign * jax.nn.sigmoid(-signed)
        if counts is not None:
            losses, by_logits = jnp.where(counts, losses, 0), jnp.where(counts, by_logits, 0)
        # One sum per row, because a single sum of a million tiles would lose digits.
        row_next = {"loss": row["loss"] + jnp.sum(losses, 1)}
        if not differentiate:
            return row_next, column
        row_next |= {
            "scale": row["scale"] + jnp.sum(by_logits * cosines, 1),
            "bias": row["bias"] + jnp.sum(by_logits, 1),
        }
        row_next |= _add_gradient(row, by_logits, columns["text"], "image")
        return row_next, _add_gradient(column, by_logits.T, rows["image"], "text")

    names = ("loss", "scale", "bias") if differentiate else ("loss",)
    row_sums = {name: jnp.zeros(len(rows["image"]), dtype) for name in names}
    column_sums: Arrays = {}
    if differentiate:
        row_sums |= _zero_gradient(rows["image"], "image")
        column_sums |= _zero_gradient(columns["text"], "text")
    row_sums, column_sums = layout.sweep(
        tile=tile, rows=rows, columns=columns, row_sums=row_sums, column_sums=column_sums, merge=None
    )
    sums = tuple(total(layout, jnp.sum(row_sums[name])) / batch for name in names)
    if not differentiate:
        return sums, ()
    return sums, _own_gradients(
        layout, row_sums=row_sums, column_sums=column_sums, factor=scalars["scale"] / batch, pairs=pairs
    )


def accumulator(embeddings: jax.Array) -> Any:
    """The dtype of logits, statistics and sums over tiles."""
    return jnp.promote_types(embeddings.dtype, jnp.float32)


def _batch(layout: Layout, pairs: Arrays) -> int:
    down, across = layout.grid
    return len(pairs["image"]) * down * across


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    # With the default precision, TPUs and GPUs would round float32 embeddings before the product.
    return jnp.matmul(left, right, precision="highest", preferred_element_type=accumulator(left))


def _logits(rows: Arrays, columns: Arrays, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    cosines = _product(rows["image"], columns["text"].T)
    return cosines, scale.astype(cosines.dtype) * cosines


def _partners(rows: Arrays, columns: Arrays) -> jax.Array:
    """The mask of a tile's matching pairs."""
    name = "ids" if "ids" in rows else "index"
    return rows[name][:, None] == columns[name][None, :]


def _without_itself(rows: Arrays, columns: Arrays, counts: jax.Array | None) -> jax.Array | None:
    """The mask of a tile's entries that count, without those that compare an embedding with itself."""
    if "image_record" not in rows:
        return counts
    others = rows["image_record"][:, None] != columns["text_record"][None, :]
    return others if counts is None else counts & others


def _start(length: int, kinds: tuple[str, ...], dtype: Any) -> Arrays:
    return {kind: jnp.full(length, -jnp.inf if kind in _GREATEST else 0, dtype) for kind in kinds}


_GREATEST = ("max", "best_partner")


def _fold(sums: Arrays, logits: jax.Array, partners: jax.Array, axis: int) -> Arrays:
    """Adds a tile to the statistics of rows (axis 1) or columns (axis 0); see Milakov & Gimelshein 2018.

    `logits` are -inf for entries that do not count.
    """
    top = jnp.maximum(sums["max"], jnp.max(logits, axis))
    exponentials = jnp.exp(logits - jnp.expand_dims(top, axis))
    # Entries that tie with the maximum and are not partners.
    rivals = (logits == jnp.expand_dims(top, axis)) & ~partners
    return {
        "max": top,
        "sum": sums["sum"] * jnp.exp(sums["max"] - top) + jnp.sum(exponentials, axis),
        "best_partner": jnp.maximum(sums["best_partner"], jnp.max(jnp.where(partners, logits, -jnp.inf), axis)),
        "rivals": jnp.where(sums["max"] == top, sums["rivals"], 0) + jnp.sum(rivals, axis, dtype=top.dtype),
    }


def _hits(sums: Arrays) -> jax.Array:
    """1 if a partner is the most similar, less if others tie with it, so that a collapsed model has chance accuracy."""
    return jnp.where(sums["best_partner"] >= sums["max"], 1 / (1 + sums["rivals"]), 0)


def _merge(sums: Arrays, axis: str) -> Arrays:
    """Merges the statistics of rows or columns over the devices along an axis."""
    merged = {key: lax.pmax(sums[key], axis) for key in _GREATEST if key in sums}
    for key, item in sums.items():
        if key == "rivals":
            merged[key] = lax.psum(jnp.where(sums["max"] == merged["max"], item, 0), axis)
        elif key not in _GREATEST:
            merged[key] = lax.psum(item * jnp.exp(sums["max"] - merged["max"]) if key == "sum" else item, axis)
    return merged


def _zero_gradient(embeddings: jax.Array, name: str) -> Arrays:
    """The initial sums of a gradient by one side's embeddings."""
    dtype = accumulator(embeddings)
    zeros = {name: jnp.zeros(embeddings.shape, dtype)}
    if embeddings.dtype != dtype:
        zeros[f"{name}_lost"] = jnp.zeros(len(embeddings), dtype)
    return zeros


def _add_gradient(sums: Arrays, by_logits: jax.Array, others: jax.Array, name: str) -> Arrays:
    """Adds a tile to the sums of a gradient by one side's embeddings.

    Matrix units need bfloat16 on both sides, so the gradient by the logits is rounded to it. Its rows sum to almost 0,
    but the rounded rows do not. The rounding errors are summed for `_own_gradients` to compensate.
    """
    rounded = by_logits.astype(others.dtype)
    result = {name: sums[name] + _product(rounded, others)}
    if f"{name}_lost" in sums:
        result[f"{name}_lost"] = sums[f"{name}_lost"] + jnp.sum(by_logits - rounded.astype(by_logits.dtype), 1)
    return result


def _own_gradients(layout: Layout, row_sums: Arrays, column_sums: Arrays, factor: jax.Array, pairs: Arrays) -> tuple:
    """This device's rows of both gradients, from the sums of all devices."""
    batch, dtype = _batch(layout, pairs), accumulator(pairs["image"])

    def complete(sums: Arrays, name: str, other: str) -> jax.Array:
        if f"{name}_lost" not in sums:
            return sums[name]
        # Approximate the lost terms by (lost row sum) x (mean embedding); accurate if embeddings are nearly parallel.
        mean = total(layout, jnp.sum(pairs[other], 0, dtype=dtype)) / batch
        return sums[name] + sums[f"{name}_lost"][:, None] * mean

    image = layout.total_rows(complete(row_sums, "image", "text"))
    text = layout.total_columns(complete(column_sums, "text", "image"))
    return (image * factor).astype(pairs["image"].dtype), (text * factor).astype(pairs["text"].dtype)
