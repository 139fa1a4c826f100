"""python benchmarks/faults/bad_numbers.py: numbers that are not finite, of every kind, and what the policies do.

A NaN arises at step 20, a step that is saved, in the loss, the gradient, the update, the moments, batch statistics or
the moving average. Shown are the step at which a run notices, whether the checkpoints that it leaves verify and are
finite, whether the same command without the fault ends as an unbroken run, and whether on_nonfinite=rewind brings the
run with the fault to its end. Then a spike of the loss, and images that are all black: the run says it and goes on.
"""

from __future__ import annotations

import pathlib
import shutil
import tempfile

import numpy as np
from runs import commands, ended, figures, made

BATCH, STEP = 19, 20
RESNET = "recipes.modified_resnet(image_size=32, width=8, layers=(1, 1, 1, 1))"
# What each kind needs of the recipe.
KINDS = {
    "loss": "",
    "gradient": "",
    "update": "",
    "first moment": "",
    "second moment": "",
    "batch statistics": f"config.method.image = {RESNET}",
    "moving average": "config.optimizer.average_decay = 0.9",
}
# An id of 10^6 marks the batch, so that the fault depends on the data and is gone with them.
PATCH = """
import os
import jax
import jax.numpy as jnp
import numpy as np
from jaxclip import methods, step
from jaxclip.data import loader
from jaxclip.methods import clip

kind, bad_batch = os.environ["KIND"], int(os.environ["BATCH"])
bad = None  # while a step is traced: whether its batch is the marked one


def poisoned(tree, *, named=""):
    def leaf(path, value):
        if not jnp.issubdtype(value.dtype, jnp.floating) or named not in jax.tree_util.keystr(path):
            return value
        return value.at[(0,) * value.ndim].set(jnp.where(bad, jnp.nan, value[(0,) * value.ndim]))

    return jax.tree_util.tree_map_with_path(leaf, tree)


rows = loader.TrainingLoader.rows


def marked_rows(self, position, count):
    made = rows(self, position, count)
    if position // 8 == bad_batch:
        made["text_end"] = np.full_like(made["text_end"], 10**6)
    return made


loader.TrainingLoader.rows = marked_rows
train = step.Step._train


def marking_train(self, state, batch):
    global bad
    bad = jnp.max(batch["text_end"]) == 10**6
    end = jnp.minimum(batch["text_end"], batch["text"].shape[-1] - 1)
    result = train(self, state, {**batch, "text_end": end})
    bad = None
    return result


step.Step._train = marking_train


@jax.custom_vjp
def backwards_bad(value, bad):
    return value


backwards_bad.defvjp(lambda value, bad: (value, bad), lambda bad, grad: (jnp.where(bad, jnp.nan, grad), None))
loss = clip.Method.loss


def broken_loss(self, model, batch, ctx):
    value, metrics = loss(self, model, batch, ctx)
    if bad is not None and ctx.key is not None:
        value = {
            "loss": lambda: jnp.where(bad, jnp.nan, value),
            "gradient": lambda: backwards_bad(value, bad),
            "spike": lambda: value + jnp.where(bad, 20.0, 0.0),
        }.get(kind, lambda: value)()
    return value, metrics


clip.Method.loss = broken_loss
init = step.Step.__init__


def broken_init(self, *given, **named):
    init(self, *given, **named)
    update = self.optimizer.update

    def broken_update(grads, state, params, **more):
        updates, state = update(grads, state, params, **more)
        if kind == "update":
            updates = poisoned(updates)
        moment = {"first moment": ".mu", "second moment": ".nu"}.get(kind)
        return updates, poisoned(state, named=moment) if moment else state

    self.optimizer = self.optimizer._replace(update=broken_update)


step.Step.__init__ = broken_init
batch_stats, averaged = methods.batch_stats, step.Step._averaged
if kind == "batch statistics":
    methods.batch_stats = lambda model: poisoned(batch_stats(model)) if bad is not None else batch_stats(model)
if kind == "moving average":
    step.Step._averaged = lambda self, state, params: poisoned(averaged(self, state, params))
"""


def main() -> None:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jaxclip-numbers-"))
    wrong = 0
    for kind, change in KINDS.items():
        recipe = made(folder, 30, patch=PATCH, change=change)
        fine, faulty = ({"KIND": name, "BATCH": str(BATCH)} for name in ("", kind))
        assert ended(recipe, folder / "unbroken", env=fine).status == 0
        stopped = ended(recipe, folder / "run", env=faulty)
        noticed = [line for line in stopped.stderr.splitlines() if line.startswith(("error: step", f"step {STEP}:"))]
        whole = _whole(folder / "run")
        again = ended(recipe, folder / "run", env=fine)
        same = again.status == 0 and figures(folder / "run") == figures(folder / "unbroken")
        rewound = ended(recipe, folder / "rewound", "--config.on_nonfinite=rewind", env=faulty)
        losses = commands.losses(folder / "rewound") if rewound.status == 0 else {}
        passed = "going on from step 10, without the 10 batches since" in rewound.stderr
        right = sorted(losses) == [*range(1, 31)] and bool(np.all(np.isfinite([*losses.values()]))) and passed
        at_once = f"step {STEP}: " in "".join(noticed) and stopped.status == 1
        wrong += not (at_once and whole and same and right)
        print(
            f"{kind}: {'noticed' if at_once else 'NOT NOTICED'} at step {STEP} (status {stopped.status}); "
            f"checkpoints {'verify and are finite' if whole else 'ARE NOT WHOLE'}; without the fault the same command "
            f"is {'equal to' if same else 'DIFFERENT FROM'} an unbroken run; rewind "
            f"{'brings it to its end' if right else 'FAILS'}",
            flush=True,
        )
        for name in ("unbroken", "run", "rewound"):
            shutil.rmtree(folder / name, ignore_errors=True)
    wrong += _warnings(folder)
    shutil.rmtree(folder)
    if wrong:
        raise SystemExit(1)


def _whole(workdir: pathlib.Path) -> bool:
    """Whether all checkpoints of a run verify and hold finite numbers alone."""
    import jaxclip
    from jaxclip.checkpoint.__main__ import main as checkpoint_command

    if checkpoint_command(["verify", str(workdir)]) != 0:
        return False
    model = jaxclip.load(workdir)
    return bool(np.all(np.isfinite(model.encode_text(["red to the left of blue"]))))


def _warnings(folder: pathlib.Path) -> int:
    """A spike and a collapse; returns how many go without a line or do not go on."""
    wrong = 0
    recipe = made(folder, 70, patch=PATCH)
    spike = ended(recipe, folder / "spike", env={"KIND": "spike", "BATCH": "60"})
    said = [line for line in spike.stderr.splitlines() if "a spike" in line]
    wrong += spike.status != 0 or len(said) != 1 or not said[0].startswith("step 61: ")
    print(f"spike at step 61: status {spike.status}, {said}", flush=True)
    black = commands.png("black", "black")
    pairs = {f"{n}.png": black for n in range(64)} | {f"{n}.txt": f"number {n} of black".encode() for n in range(64)}
    commands.write_tar(folder / "black.tar", dict(sorted(pairs.items())))
    flags = ("--config.data.train=black.tar", "--config.steps=20")
    collapse = ended(recipe, folder / "collapse", *flags, env={"KIND": "", "BATCH": "-1"})
    said = [line for line in collapse.stderr.splitlines() if "alike" in line]
    wrong += collapse.status != 0 or not said or not said[0].startswith("step 5: ")
    print(f"all images black: status {collapse.status}, {said}", flush=True)
    return wrong


if __name__ == "__main__":
    main()
