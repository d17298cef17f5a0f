"""How two node programs prove to each other that they are of the same start of the same job.

::

    node  -> first   {"index", "nonce", "address"}
    first -> node    {"nonce", "proof"}         the first node knows the token
    node  -> first   {"proof"}                  so does the other

A proof is an HMAC, keyed by the job's token, of both nonces, the start of the job, and what the node says of
itself: the token never travels, and no proof is good for a second connection. Standard library only.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any

_NUM_PORTS = 5
_APART = 2_400


class Hello:
    """What is said on one connection before either side trusts the other.

    Args:
        token: the job's.
        run_key: of this start of the job.
        index: of the node that calls.
        address: at which it calls.
        nonce: of that node; None at that node itself, which makes one.
    """

    def __init__(self, token: str, run_key: str, index: int, address: str, nonce: str | None = None) -> None:
        self.index, self.address = index, address
        self.nonce = nonce or new_nonce()
        self._token, self._run_key = token, run_key

    @classmethod
    def heard(cls, token: str, run_key: str, message: Mapping[str, Any]) -> Hello | None:
        """The hello of a node that calls; None if it is not one."""
        match message:
            case {"index": int(index), "nonce": str(nonce), "address": str(address)} if nonce:
                return cls(token, run_key, index, address, nonce)
        return None

    def message(self) -> dict[str, Any]:
        """What the node that calls says first."""
        return {"index": self.index, "nonce": self.nonce, "address": self.address}

    def proof(self, role: str, nonce: str) -> str:
        """Of the node that plays ``role``, "first" or "node"; ``nonce`` is the first node's."""
        said = json.dumps([role, self._run_key, self.index, self.address, self.nonce, nonce])
        return hmac.new(self._token.encode(), said.encode(), hashlib.sha256).hexdigest()

    def proven(self, role: str, nonce: str, proof: object) -> bool:
        """Whether ``proof`` is that of ``role``."""
        return (
            isinstance(proof, str) and proof.isascii() and hmac.compare_digest(self.proof(role, nonce), proof)
        )


def new_nonce() -> str:
    """A number used once, as text."""
    return secrets.token_hex(16)


def ports(token: str, run_key: str) -> tuple[int, ...]:
    """The ports of which the first node takes one that is free, below those that connections are given.

    One in each 2,400 from 20,000 on, so that a program that holds a range of ports does not hold all of them.
    """
    digest = hashlib.sha256(f"{token} {run_key}".encode()).digest()
    firsts = range(20_000, 20_000 + _NUM_PORTS * _APART, _APART)
    return tuple(
        first + int.from_bytes(digest[4 * index :][:4], "big") % _APART for index, first in enumerate(firsts)
    )
