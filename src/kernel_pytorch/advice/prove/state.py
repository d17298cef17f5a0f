# TEMPORARY FAKE
import contextlib


@contextlib.contextmanager
def preserved(model, optimizer=None):
    yield
