"""The facts of :mod:`advice_facts`, under the name that says where they come from."""

from advice_facts import facts as recorded_facts

__all__ = ["recorded_facts"]
