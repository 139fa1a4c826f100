"""Slow imports of the trainer, done once for the processes that are forked from this one."""

import jaxclip.train  # noqa: F401
from jaxclip import main  # noqa: F401
from jaxclip.quiet import quiet_stderr

with quiet_stderr():
    import clu.metric_writers  # noqa: F401
    import tensorflow  # noqa: F401
