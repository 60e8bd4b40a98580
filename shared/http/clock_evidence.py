"""Whose fault it is that a certificate seems expired, or not valid yet: the certificate's, or a clock's.

The TLS library only says that by this host's clock the time is over, or has not come. So whoever meets that looks once more, without
trusting and without sending anything of ours (`look`): which certificate is it, and what time is it there, which a web server says in each
answer. That can be forged, so nothing follows from it but words; trust is decided by the handshake alone. With what this process knows
about its own clock (`jumped_s`) it gives a verdict (`judge`), and each error names the clock where it may be one.
"""

from __future__ import annotations

import asyncio
import enum
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

from shared.errors import (
    CertificateExpiredError,
    HostClockError,
    PeerError,
    ServerCertificateExpiredError,
)
from shared.moments import coarse, shown
from shared.trust import tls

AGREE_S: Final = 300.0
"""Clocks that differ by less agree."""
_LOOK_S: Final = 3.0
_HEAD_B: Final = 16 << 10
_SET_RIGHT: Final = (
    "Set this host's clock right (NTP: timedatectl, chronyc tracking); then it goes on by itself."
)
_BORN: Final = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)


class Evidence(NamedTuple):
    """Times are Unix seconds; None: not known."""

    now_s: float
    """By this host's clock."""
    begins_s: float | None = None
    """Of the certificate that the other end shows, whoever that is."""
    ends_s: float | None = None
    theirs_s: float | None = None
    """By the clock of whoever answers there, or another's."""
    jumped_s: float = 0.0
    """How far this host's clock was set since this process began."""
    whose: str = "the other host's"
    """Which clock `theirs_s` is by."""


class Fault(enum.Enum):
    CLOCK = "this host's clock, or theirs"
    CERTIFICATE = "the certificate"
    UNKNOWN = "one of them"


class Verdict(NamedTuple):
    fault: Fault
    cause: str
    action: str


def judge(seen: Evidence) -> Verdict:
    """Pure. Why a certificate does not seem to be valid at this time."""
    clocks = f"this host's clock shows {coarse(seen.now_s)}"
    if seen.theirs_s is not None:
        clocks += f", and {seen.whose} {coarse(seen.theirs_s)}"
    if abs(seen.jumped_s) > AGREE_S:
        clocks += f" (this host's was set {_span(seen.jumped_s)} since this program began)"
    if seen.begins_s is None or seen.ends_s is None:
        return Verdict(Fault.UNKNOWN, clocks, f"Check this host's clock first. {_SET_RIGHT}")
    valid = (
        f"the certificate there is valid from {shown(seen.begins_s)} to {shown(seen.ends_s)}, and {clocks}"
    )
    here = seen.begins_s <= seen.now_s <= seen.ends_s
    if here:
        return Verdict(
            Fault.UNKNOWN,
            f"{valid}: what is out of date is its CA's certificate",
            f"Check this host's clock first; if it is right, the CA has to be renewed. {_SET_RIGHT}",
        )
    if seen.theirs_s is not None:
        apart_s = seen.now_s - seen.theirs_s
        if seen.begins_s <= seen.theirs_s <= seen.ends_s and abs(apart_s) > AGREE_S:
            return Verdict(
                Fault.CLOCK,
                f"{valid}: this one is {_span(apart_s)}, or {seen.whose} wrong",
                f"{_SET_RIGHT} If it is right, {seen.whose} is wrong.",
            )
        return Verdict(
            Fault.CERTIFICATE, f"{valid}: by both clocks it is out of date", "Renew it on the other host."
        )
    if seen.now_s < seen.begins_s or abs(seen.jumped_s) > AGREE_S:
        return Verdict(Fault.CLOCK, valid, f"{_SET_RIGHT} If it is right, renew the certificate there.")
    return Verdict(
        Fault.UNKNOWN,
        valid,
        f"Check this host's clock first; if it is right, renew the certificate there. {_SET_RIGHT}",
    )


def jumped_s() -> float:
    """How far this host's clock was set since this process began; a suspension is no jump."""
    wall_s, booted_s = _BORN
    return (time.time() - wall_s) - (time.clock_gettime(time.CLOCK_BOOTTIME) - booted_s)


async def look(host: str, port: int, *, web: bool) -> Evidence:
    """What whoever answers there shows. `web`: it speaks HTTP. Raises nothing; takes three seconds at most."""
    from cryptography import x509  # the command line must start fast

    found = Evidence(time.time(), jumped_s=jumped_s())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(_LOOK_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context, limit=_HEAD_B)
            try:
                der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                certificate = x509.load_der_x509_certificate(der or b"")
                found = found._replace(
                    begins_s=certificate.not_valid_before_utc.timestamp(),
                    ends_s=certificate.not_valid_after_utc.timestamp(),
                )
                if web:
                    writer.write(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                    found = found._replace(theirs_s=date_in(await reader.readuntil(b"\r\n\r\n")))
            finally:
                writer.transport.abort()
    except Exception:  # noqa: BLE001, S110 - whatever it is that answers there: the error that led here is told, with what was seen
        pass
    return found


async def told(
    exc: BaseException, what: str, host: str, port: int, *, web: bool, clock_at: tuple[str, int] | None = None
) -> PeerError:
    """`tls.translate`, for whoever connected there. `clock_at`: a config server, which is asked what time it is where they do not say."""
    error = tls.translate(exc, what)
    if not isinstance(error, CertificateExpiredError) or not isinstance(exc, ssl.SSLCertVerificationError):
        return error
    seen = await look(host, port, web=web)
    if seen.theirs_s is None and clock_at is not None:
        asked = await look(*clock_at, web=True)
        seen = seen._replace(theirs_s=asked.theirs_s, whose="the config server's")
    verdict = judge(seen)
    kinds: dict[Fault, type[PeerError]] = {
        Fault.CLOCK: HostClockError,
        Fault.CERTIFICATE: ServerCertificateExpiredError,
        Fault.UNKNOWN: CertificateExpiredError,
    }
    return kinds[verdict.fault](
        what, cause=f"its certificate is not valid at this time: {verdict.cause}", action=verdict.action
    )


def date_in(head: bytes) -> float | None:
    """By whose clock an answer (its head) was sent, Unix seconds; whole ones."""
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "date":
            return parsedate_to_datetime(value.strip()).timestamp()
    return None


def _span(seconds: float) -> str:
    size_s = abs(seconds)
    size = f"{size_s / 86400:.0f} days" if size_s >= 2 * 86400 else f"{size_s / 60:.0f} minutes"
    return f"{size} {'ahead' if seconds > 0 else 'behind'}"
