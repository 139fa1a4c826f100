"""Several processes of one command, joined by jax.distributed."""

from __future__ import annotations

import os

from jaxclip.errors import UserError
from jaxclip.io import one_line

_NAMES = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # JAX itself reads only JAX_COORDINATOR_ADDRESS.


def join(asked: bool) -> bool:
    """Starts jax.distributed, which detects the other processes on TPU pods and under SLURM.

    Args:
      asked: whether the person has asked for it; on a TPU pod it is the default.

    Returns:
      Whether there are several processes.

    Raises:
      UserError: there is no saying where the others are.
    """
    if not (asked or len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1):
        return False
    import jax

    try:
        processes, process = (int(os.environ[name]) if name in os.environ else None for name in _NAMES)
        jax.distributed.initialize(num_processes=processes, process_id=process)
    except ValueError as error:
        raise UserError(
            f"--distributed: {one_line(error)} Outside TPU pods and SLURM, set JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            f"{' and '.join(_NAMES)}"
        ) from None
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that speaks for all."""
    import jax

    return jax.process_index() == 0
