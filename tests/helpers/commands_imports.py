"""Slow imports of the trainer, done once for the processes that are forked from this one."""

import gc

import jaxclip.train  # noqa: F401
from jaxclip import main  # noqa: F401
from jaxclip.quiet import quiet_stderr

with quiet_stderr():
    import clu.metric_writers  # noqa: F401
    import tensorflow  # noqa: F401

# What is imported is never garbage: forks that looked through it would copy its pages.
gc.freeze()
