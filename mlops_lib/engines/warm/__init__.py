"""Warm kernels and commands: notebooks and ``mlops`` whose heavy imports are already done.

A process of the user, started on demand, imports MLflow, pandas, scikit-learn and their kin once and forks a kernel
from itself whenever a notebook needs one. It is a standard ``jupyter_client`` kernel provisioner, so JupyterLab,
papermill, nbclient, nbval and nbmake use it unchanged: through the kernelspec ``mlops``, or, for notebooks that name
``python3``, through :func:`environment`. The ``mlops`` of a shell runs in a fork of the same server where one is
running: :func:`entry`. It costs the memory of one process with these imports for half an hour after its last use, and
is for Linux only. Where a fork is not possible or anything about it fails, a plain kernel is started, one line on
stderr says why, and a command runs where it was called: all is the same but for some seconds, so that this package may
be left unread.

A server is only ever shared by kernels that would have come out the same: see :mod:`mlops_lib.engines.warm.keys`.
Known differences from a plain kernel: warnings that an import gives are not shown again, MLflow's usage telemetry is
off, kernels of one server iterate over sets of strings in the same order, a library that is edited in place is seen
only after :func:`stop`, and the leader of a kernel's session is its parent, which stands between it and the server. It
refuses a directory that others may enter, and clients of other users.

>>> environment()
{'JUPYTER_DEFAULT_PROVISIONER_NAME': 'mlops-warm'}
"""

from mlops_lib.engines.warm.client import entry
from mlops_lib.engines.warm.server import without_grammar
from mlops_lib.engines.warm.servers import PROVISIONER_NAME, environment, install, is_supported, prepare, status, stop

__all__ = [
    "PROVISIONER_NAME",
    "entry",
    "environment",
    "install",
    "is_supported",
    "prepare",
    "status",
    "stop",
    "without_grammar",
]
