"""Exit statuses of all commands, and one line on what a person can mend."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from jaxclip.errors import UserError
from jaxclip.stopping import Signals, Stopped, end_process
from jaxclip.watch import NotFinite

# What a person can mend: a full or read-only disk, a quota, a path.
_MENDABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)


def run_command(command: Callable[[Signals], int | None]) -> int:
    """Runs a command and returns its exit status; what a person can mend is one line on standard error.

    The statuses: 0 done; 2 something that a person can mend; 75 stopped by SIGTERM or SIGHUP; 130 stopped by Ctrl-C;
    1 anything else. After a stop the process ends here, since threads may be at work.

    Args:
      command: given what the process is told by signals; returns a status, None for 0.
    """
    with Signals().handled() as signals:
        try:
            return command(signals) or 0
        except UserError as error:
            return _fail(str(error), 2)
        except NotFinite as error:
            return _fail(str(error), 1)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            end_process(stopped.status)
            raise  # Not reached.
        except BrokenPipeError:
            end_process(141)  # As a shell counts SIGPIPE: who reads the output has gone.
            raise
        except OSError as error:
            if error.errno not in _MENDABLE or error.filename is None:
                raise
            return _fail(f"{error.filename}: {error.strerror}", 2)


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
