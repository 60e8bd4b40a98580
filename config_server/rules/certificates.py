"""What holds for all certificates of the CA. Pure."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

BACKDATED: Final = dt.timedelta(minutes=5)
"""Certificates begin a little in the past: hosts' clocks differ."""


def fingerprint_of(key: ec.EllipticCurvePublicKey) -> str:
    """Names a key."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
