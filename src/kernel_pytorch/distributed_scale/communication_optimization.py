"""Old module, now split into three: see :mod:`kernel_pytorch.legacy`."""

from ..legacy import warn_moved as _warn_moved
from .communication_primitives import *  # noqa: F403
from .communication_profiling import *  # noqa: F403
from .network_optimization import *  # noqa: F403

_warn_moved(__name__)
