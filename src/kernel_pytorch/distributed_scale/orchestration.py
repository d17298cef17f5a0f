"""Old module, now split into three: see :mod:`kernel_pytorch.legacy`."""

from ..legacy import warn_moved as _warn_moved
from .cluster_management import *  # noqa: F403
from .job_management import *  # noqa: F403
from .scaling_fault_tolerance import *  # noqa: F403

_warn_moved(__name__)
