"""Old module, now three: see :mod:`kernel_pytorch.legacy`."""

from ..legacy import warn_moved as _warn_moved
from .compiler_assistant import *  # noqa: F403
from .model_analyzer import *  # noqa: F403
from .optimization_recommendations import *  # noqa: F403

_warn_moved(__name__)
