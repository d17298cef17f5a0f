"""Old module, now split into four: see :mod:`kernel_pytorch.legacy`."""

from ..legacy import warn_moved as _warn_moved
from .fault_tolerance import *  # noqa: F403
from .hardware_adapter import *  # noqa: F403
from .hardware_discovery import *  # noqa: F403
from .thermal_power_management import *  # noqa: F403

_warn_moved(__name__)
