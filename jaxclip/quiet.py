"""Suppression of log output that native libraries write while they are loaded."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Discards what the process writes to standard error in the block, unless the block raises.

    TensorFlow's C++ libraries log a few lines while they are loaded. They do so before TF_CPP_MIN_LOG_LEVEL takes
    effect, and bypass Python's `sys.stderr`.
    """
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            file.seek(0)
            os.write(original, file.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
