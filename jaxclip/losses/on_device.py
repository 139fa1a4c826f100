"""What each device computes of a contrastive loss: sums over the tiles of its block, and what follows from them.

Notation: s[i, j] = scale * <image i, text j>, B pairs in the batch, w the weight of the direction picture -> text.
Softmax:  loss = 1/B sum_i w (R[i] - positive[i]) + (1 - w) (C[i] - positive[i]), with R and C the logsumexp of a row
          and of a column, and a first sweep for R and C, a second one for the gradient,
          B dloss/ds = w exp(s - R) + (1 - w) exp(s - C) - target. One product of a tile serves both directions.
Sigmoid:  loss = 1/B sum_ij softplus(-z[i, j] (s[i, j] + bias)), z = 1 for i = j, else -1. One sweep does everything.
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
      image_weight: of classifying pictures among texts.
      differentiate: whether the gradients are asked for.
      layout: of the matrix on the devices.
      pairs: this device's own rows of `image` and `text` embeddings and, where there are any, of `ids` [n] and of
        `teacher_image` and `teacher_text`.
      scalars: `scale`, and for a teacher `teacher_scale` and `teacher_weight`.

    Returns:
      (loss, accuracy, gradient by the scale), equal on all devices, and this device's own rows of the gradients by both
      embeddings; without gradients 0 and ().
    """
    rows = layout.rows({key: pairs[key] for key in ("image", "ids", "teacher_image") if key in pairs})
    columns = layout.columns({key: pairs[key] for key in ("text", "ids", "teacher_text") if key in pairs})
    dtype = accumulator(pairs["image"])
    teacher_weight = scalars.get("teacher_weight", jnp.zeros((), dtype)).astype(dtype)
    batch = _batch(layout, pairs)
    has_ids = "ids" in pairs

    def statistics(rows: Arrays, columns: Arrays, row: Arrays, column: Arrays, counts: jax.Array | None) -> tuple:
        _, logits = _logits(rows, columns, scalars["scale"])
        counted = logits if counts is None else jnp.where(counts, logits, -jnp.inf)
        partners = _partners(rows, columns)
        teacher = _teacher_logits(rows, columns, scalars)
        if teacher is not None and counts is not None:
            teacher = jnp.where(counts, teacher, -jnp.inf)
        if has_ids:
            those = partners if counts is None else partners & counts
            row = row | {
                "partners": row["partners"] + jnp.sum(those, 1, dtype=dtype),
                "positive": row["positive"] + jnp.sum(jnp.where(those, logits, 0), 1),
            }
        return (
            row | _fold(row, counted, partners, teacher, logits, 1),
            column | _fold(column, counted, partners, teacher, logits, 0),
        )

    kinds = ("max", "best_partner", "sum", "rivals") + (
        ("teacher_max", "teacher_sum", "teacher_dot") if "teacher_image" in pairs else ()
    )
    row_start = _start(len(rows["image"]), kinds + (("partners", "positive") if has_ids else ()), dtype)
    column_start = _start(len(columns["text"]), kinds, dtype)
    row, column = layout.sweep(statistics, rows, columns, row_start, column_start, _merge)
    own_row, own_column = layout.own_rows(row), layout.own_columns(column)

    positive = own_row["positive"] / own_row["partners"] if has_ids else own_row["best_partner"]
    # With ids a column's own positives are others than its row's; summed over the batch they are the same.
    # The difference of the large numbers first: it is 0 where the own partner is the most similar.
    by_row, by_column = ((own["max"] - positive) + jnp.log(own["sum"]) for own in (own_row, own_column))
    if "teacher_image" in pairs:
        by_row += teacher_weight * (positive - own_row["teacher_dot"] / own_row["teacher_sum"])
        by_column += teacher_weight * (positive - own_column["teacher_dot"] / own_column["teacher_sum"])
    loss = total(layout, jnp.sum(image_weight * by_row + (1 - image_weight) * by_column)) / batch
    accuracy = total(layout, jnp.sum(_hits(own_row) + _hits(own_column))) / (2 * batch)
    if not differentiate:
        return (loss, accuracy, jnp.zeros((), dtype)), ()

    # The gradient's entries add up to 0, so any constant may be taken off the cosines that they weigh in the gradient
    # by the scale. Off the mean positive one, little is left to cancel.
    centre = total(layout, jnp.sum(pairs["image"].astype(dtype) * pairs["text"].astype(dtype))) / batch

    def gradients(rows: Arrays, columns: Arrays, row: Arrays, column: Arrays, counts: jax.Array | None) -> tuple:
        cosines, logits = _logits(rows, columns, scalars["scale"])
        partners = _partners(rows, columns)
        share = 1 / rows["partners"][:, None] if has_ids else 1
        # Not exp(s - logsumexp): for a block of one tile these are the exponentials that the statistics had already.
        by_logits = jnp.exp(logits - rows["max"][:, None]) * rows["factor"][:, None]
        by_logits += jnp.exp(logits - columns["max"][None, :]) * columns["factor"][None, :]
        by_logits -= jnp.where(partners, (1 - teacher_weight) * share, 0)
        teacher = _teacher_logits(rows, columns, scalars)
        if teacher is not None:
            by_logits -= jnp.exp(teacher - rows["teacher_max"][:, None]) * rows["teacher_factor"][:, None]
            by_logits -= jnp.exp(teacher - columns["teacher_max"][None, :]) * columns["teacher_factor"][None, :]
        if counts is not None:
            by_logits = jnp.where(counts, by_logits, 0)
        by_scale = row["scale"] + jnp.sum(by_logits * (cosines - centre), 1)
        row = {"scale": by_scale} | _descend(row, by_logits, columns["text"], "image")
        return row, _descend(column, by_logits.T, rows["image"], "text")

    def known(side: Arrays, sums: Arrays, weight: float) -> Arrays:
        side = side | {"factor": weight / sums["sum"]}
        if "teacher_sum" in sums:
            side |= {"teacher_factor": teacher_weight * weight / sums["teacher_sum"]}
        return side | {key: sums[key] for key in ("max", "teacher_max", "partners") if key in sums}

    row_sums = _descent(rows["image"], "image") | {"scale": jnp.zeros(len(rows["image"]), dtype)}
    column_sums = _descent(columns["text"], "text")
    row_sums, column_sums = layout.sweep(
        gradients,
        known(rows, row, image_weight),
        known(columns, column, 1 - image_weight),
        row_sums,
        column_sums,
        None,
    )
    by_scale = total(layout, jnp.sum(row_sums["scale"])) / batch
    return (loss, accuracy, by_scale), _own_gradients(layout, row_sums, column_sums, scalars["scale"] / batch, pairs)


def sigmoid_on_device(
    differentiate: bool, layout: Layout, pairs: Arrays, scalars: Arrays
) -> tuple[tuple[jax.Array, ...], tuple]:
    """One device's part of the sigmoid loss.

    Args:
      differentiate: whether the gradients are asked for.
      layout: of the matrix on the devices.
      pairs: this device's own rows of `image` and `text` embeddings.
      scalars: `scale` and `bias`.

    Returns:
      (loss, gradient by the scale, gradient by the bias), equal on all devices, and this device's own rows of the
      gradients by both embeddings; without gradients (loss,) and ().
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
        # By row and not in one number, to which adding a million tiles would lose digits.
        row_next = {"loss": row["loss"] + jnp.sum(losses, 1)}
        if not differentiate:
            return row_next, column
        row_next |= {
            "scale": row["scale"] + jnp.sum(by_logits * cosines, 1),
            "bias": row["bias"] + jnp.sum(by_logits, 1),
        }
        row_next |= _descend(row, by_logits, columns["text"], "image")
        return row_next, _descend(column, by_logits.T, rows["image"], "text")

    names = ("loss", "scale", "bias") if differentiate else ("loss",)
    row_sums = {name: jnp.zeros(len(rows["image"]), dtype) for name in names}
    column_sums: Arrays = {}
    if differentiate:
        row_sums |= _descent(rows["image"], "image")
        column_sums |= _descent(columns["text"], "text")
    row_sums, column_sums = layout.sweep(tile, rows, columns, row_sums, column_sums, None)
    sums = tuple(total(layout, jnp.sum(row_sums[name])) / batch for name in names)
    if not differentiate:
        return sums, ()
    return sums, _own_gradients(layout, row_sums, column_sums, scalars["scale"] / batch, pairs)


def accumulator(embeddings: jax.Array) -> Any:
    """The dtype of logits, statistics and sums over tiles."""
    return jnp.promote_types(embeddings.dtype, jnp.float32)


def _batch(layout: Layout, pairs: Arrays) -> int:
    down, across = layout.grid
    return len(pairs["image"]) * down * across


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    # TPUs and GPUs would otherwise round float32 embeddings on their way into the product.
    return jnp.matmul(left, right, precision="highest", preferred_element_type=accumulator(left))


def _logits(rows: Arrays, columns: Arrays, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    cosines = _product(rows["image"], columns["text"].T)
    return cosines, scale.astype(cosines.dtype) * cosines


def _teacher_logits(rows: Arrays, columns: Arrays, scalars: Arrays) -> jax.Array | None:
    if "teacher_image" not in rows:
        return None
    cosines = _product(rows["teacher_image"], columns["teacher_text"].T)
    return scalars["teacher_scale"].astype(cosines.dtype) * cosines


def _partners(rows: Arrays, columns: Arrays) -> jax.Array:
    """Which of a tile's pairs belong together."""
    name = "ids" if "ids" in rows else "index"
    return rows[name][:, None] == columns[name][None, :]


def _start(length: int, kinds: tuple[str, ...], dtype: Any) -> Arrays:
    return {kind: jnp.full(length, -jnp.inf if kind in _GREATEST else 0, dtype) for kind in kinds}


_GREATEST = ("max", "best_partner", "teacher_max")


def _fold(
    sums: Arrays,
    logits: jax.Array,
    partners: jax.Array,
    teacher: jax.Array | None,
    finite_logits: jax.Array,
    axis: int,
) -> Arrays:
    """The statistics of rows (axis 1) or columns (axis 0) with one more tile; see Milakov & Gimelshein 2018.

    `logits` and `teacher` are -inf where an entry does not count; `finite_logits` are not.
    """
    top = jnp.maximum(sums["max"], jnp.max(logits, axis))
    exponentials = jnp.exp(logits - jnp.expand_dims(top, axis))
    # Those that are as similar as the most similar and no partners.
    rivals = (logits == jnp.expand_dims(top, axis)) & ~partners
    folded = {
        "max": top,
        "sum": sums["sum"] * jnp.exp(sums["max"] - top) + jnp.sum(exponentials, axis),
        "best_partner": jnp.maximum(sums["best_partner"], jnp.max(jnp.where(partners, logits, -jnp.inf), axis)),
        "rivals": jnp.where(sums["max"] == top, sums["rivals"], 0) + jnp.sum(rivals, axis, dtype=top.dtype),
    }
    if teacher is not None:
        top = jnp.maximum(sums["teacher_max"], jnp.max(teacher, axis))
        exponentials = jnp.exp(teacher - jnp.expand_dims(top, axis))
        before = jnp.exp(sums["teacher_max"] - top)
        folded |= {
            "teacher_max": top,
            "teacher_sum": sums["teacher_sum"] * before + jnp.sum(exponentials, axis),
            "teacher_dot": sums["teacher_dot"] * before + jnp.sum(exponentials * finite_logits, axis),
        }
    return folded


def _hits(sums: Arrays) -> jax.Array:
    """1 where a partner is the most similar, its share where others are as similar: a collapsed model gets chance."""
    return jnp.where(sums["best_partner"] >= sums["max"], 1 / (1 + sums["rivals"]), 0)


def _merge(sums: Arrays, axis: str) -> Arrays:
    """The statistics of rows or columns whose parts are on the devices along an axis."""
    merged = {key: lax.pmax(sums[key], axis) for key in _GREATEST if key in sums}
    for key, item in sums.items():
        if key == "rivals":
            merged[key] = lax.psum(jnp.where(sums["max"] == merged["max"], item, 0), axis)
        elif key not in _GREATEST:
            top = {"sum": "max", "teacher_sum": "teacher_max", "teacher_dot": "teacher_max"}.get(key)
            merged[key] = lax.psum(item * jnp.exp(sums[top] - merged[top]) if top else item, axis)
    return merged


def _descent(embeddings: jax.Array, name: str) -> Arrays:
    """Where the sums of a gradient by one side's embeddings start from."""
    dtype = accumulator(embeddings)
    start = {name: jnp.zeros(embeddings.shape, dtype)}
    if embeddings.dtype != dtype:
        start[f"{name}_lost"] = jnp.zeros(len(embeddings), dtype)
    return start


def _descend(sums: Arrays, by_logits: jax.Array, others: jax.Array, name: str) -> Arrays:
    """The sums of a gradient by one side's embeddings with one more tile.

    Matrix units take bfloat16 on both sides, so the gradient by the logits is rounded to it. Its rows add up to all but
    nothing and the rounded ones do not; what was lost is kept for `_own_gradients` to put back.
    """
    rounded = by_logits.astype(others.dtype)
    further = {name: sums[name] + _product(rounded, others)}
    if f"{name}_lost" in sums:
        further[f"{name}_lost"] = sums[f"{name}_lost"] + jnp.sum(by_logits - rounded.astype(by_logits.dtype), 1)
    return further


def _own_gradients(layout: Layout, row_sums: Arrays, column_sums: Arrays, factor: jax.Array, pairs: Arrays) -> tuple:
    """This device's rows of both gradients, from the sums of all devices."""
    batch, dtype = _batch(layout, pairs), accumulator(pairs["image"])

    def complete(sums: Arrays, name: str, other: str) -> jax.Array:
        if f"{name}_lost" not in sums:
            return sums[name]
        # As if all that was lost had weighed the mean of the embeddings, which is most of each where they are alike.
        mean = total(layout, jnp.sum(pairs[other], 0, dtype=dtype)) / batch
        return sums[name] + sums[f"{name}_lost"][:, None] * mean

    image = layout.total_rows(complete(row_sums, "image", "text"))
    text = layout.total_columns(complete(column_sums, "text", "image"))
    return (image * factor).astype(pairs["image"].dtype), (text * factor).astype(pairs["text"].dtype)
