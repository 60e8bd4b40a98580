"""The other end of a connection: protocol, TLS, refusals. Whose fault it is, is in the type."""

from __future__ import annotations

from shared.errors.base import UnhealthyError


class PeerError(UnhealthyError):
    code = "US420"


class NoProcessServerError(PeerError):
    """Nobody says where the stream is to go. Capture goes on."""

    code = "US623"
    default_cause = "neither the config server nor the agent's configuration names one"
    default_action = "Name one: for this machine on the config server, or as `process_server` in agent.toml."


class AcceptError(PeerError):
    """Somebody came, and his connection could not be taken."""

    code = "US605"
    default_action = (
        "If it goes on: too many open files, raise LimitNOFILE= in the unit and restart; no memory, give this host more;"
        " permission denied, allow it to this service (SELinux: ausearch -m avc). Connections that are open go on, and others are accepted"
        " as soon as it is possible."
    )


class LocalProtocolError(PeerError):
    """Our fault: this end wanted to send what the session does not allow."""

    code = "US421"
    default_action = "This is a bug on this side; the connection is closed and made anew, nothing is lost."


class ServerOutdatedError(PeerError):
    """The config server does not know what this command asks of it."""

    code = "US588"
    default_action = "Upgrade the config server, or use a command line of its version."


class RemoteProtocolError(PeerError):
    """The peer's fault: it broke the protocol. The connection is closed; the rest is sent again."""

    code = "US422"
    default_action = (
        "The connection is closed, nothing is lost; if it repeats, compare the versions of both ends."
    )


class NotAFrameError(RemoteProtocolError):
    code = "US423"
    default_cause = "the bytes do not begin like a frame of this protocol"
    default_action = "Something else talks to this port, or a proxy changes the stream. Nothing is lost."


class OversizedFrameError(RemoteProtocolError):
    code = "US424"
    default_action = "The frame was refused before any memory was used for it. Nothing is lost."


class VersionSkewError(RemoteProtocolError):
    code = "US425"
    default_action = "Upgrade the older end; until then the agent keeps what it has."


class TruncatedFrameError(RemoteProtocolError):
    code = "US426"
    default_cause = "the connection ended inside a frame"
    default_action = "The sender connects again and repeats what was not acknowledged."


class MalformedFrameError(RemoteProtocolError):
    code = "US427"


class UnexpectedFrameError(RemoteProtocolError):
    code = "US428"


class BatchGapError(RemoteProtocolError):
    code = "US429"
    default_action = "The sender connects again and continues behind the last acknowledged batch."


class BatchConflictError(RemoteProtocolError):
    """A batch that is here already came again with other content."""

    code = "US450"
    ends_epoch = True
    default_action = "The machine was reverted or cloned: a new epoch begins with a resync."


class ContinuityError(RemoteProtocolError):
    """The sender's history is not the one that is stored here."""

    code = "US451"
    ends_epoch = True
    default_action = "The machine was reverted, cloned or lost its state: a new epoch begins with a resync."


class RefusedError(PeerError):
    """The peer sent a Fault. `cause` and `action` are the peer's words."""

    code = "US452"


class SilentPeerError(PeerError):
    code = "US453"
    default_action = "Check the network between the two hosts. The agent connects again by itself."


class SupersededError(PeerError):
    code = "US454"
    default_cause = "the same machine has opened a newer session"
    default_action = "If this repeats, two agents run under one name: enrol a cloned machine anew."


class CopyRefusedError(PeerError):
    """Another copy of the machine is its active side: nothing of this one is taken (I7)."""

    code = "US456"
    default_action = (
        "Leave it so for a drill, a clone or an old source. If this is the machine now, on other hardware:"
        " understudy machine rebind NAME."
    )


class MachineAwaitedError(PeerError):
    """Another boot than the machine's last one comes too soon after it: it may be a copy. `retry_after_s`: how long it is kept waiting."""

    code = "US530"
    default_action = "Nothing, if the machine was rebooted: it is taken a few seconds later. If this is a copy of it, stop its agent."

    def __init__(self, what: str, *, cause: str = "", action: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(what, cause=cause, action=action)
        self.retry_after_s = retry_after_s


class TooManyHellosError(PeerError):
    """A machine says Hello again and again. `retry_after_s`: when the next one is taken."""

    code = "US582"
    default_cause = "each costs requests to storage"
    default_action = (
        "Look at its agent's log: why do its sessions end at once? If it is not that agent, its certificate was copied: revoke it"
        " (understudy certificate revoke) and enrol the machine anew."
    )

    def __init__(self, what: str, *, cause: str = "", action: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(what, cause=cause, action=action)
        self.retry_after_s = retry_after_s


class TwinDaemonError(PeerError):
    """Two daemons have one name, and its certificate."""

    code = "US583"
    default_action = (
        "Stop one of the two: a virtual machine was cloned, or restored beside the original. The one that reported first is believed, the"
        " other gets no commands. If both are wanted, enrol one under a name of its own (understudy token create)."
    )


class StoppingError(PeerError):
    code = "US455"
    default_cause = "it is shutting down"
    default_action = "The agent connects again by itself."


class TlsError(PeerError):
    code = "US460"
    default_action = "Check the certificates of both ends; they must come from one installation."


class NotTlsError(TlsError):
    code = "US461"
    default_action = "Something that does not speak TLS uses this port: find it by the address."


class CertificateMissingError(TlsError):
    code = "US462"
    default_cause = "it showed no certificate"
    default_action = "Only enrolled daemons may connect: enrol it with the config server."


class CertificateExpiredError(TlsError):
    code = "US463"
    default_action = "Check the clocks of both hosts; if they are right, renew the certificate."


class ServerCertificateExpiredError(CertificateExpiredError):
    """By this host's clock and by its own."""

    code = "US562"
    default_action = "Renew it there."


class HostClockError(TlsError):
    """This host's clock is so wrong that certificates seem to be out of date."""

    code = "US547"
    default_action = (
        "Set this host's clock right (NTP: timedatectl, chronyc tracking); then it goes on by itself. If the clock is right, enrol "
        "this daemon anew."
    )


class UnknownAuthorityError(TlsError):
    code = "US464"
    default_action = "Both ends must be enrolled with the same config server."


class WrongHostError(TlsError):
    code = "US465"
    default_action = "Connect by a name or address that the server's certificate carries."


class WrongRoleError(TlsError):
    code = "US466"
    default_action = "Use the certificate that was issued for this role and name."


class BadCertificateError(TlsError):
    """What a config server issued cannot be our certificate."""

    code = "US469"
    default_action = "Nothing was replaced; it is tried again. Check both clocks; after a change of the CA, enrol this host anew."


class TrustNotTakenError(TlsError):
    """The anchors that the config server names cannot be those of a daemon."""

    code = "US655"
    default_action = (
        "What was trusted before still is, and they are told again with each answer. A config server from a backup, of before the CA was"
        " renewed: put the newest state back in its place. Else enrol this host anew."
    )


class OthersFolderError(TlsError):
    """A folder holds the certificate of another daemon than the one that is meant."""

    code = "US584"
    default_action = (
        "Give the folder of the daemon that the token is for (--dir). Shall it become that one, or is it enrolled with another config"
        " server from now on: the same command with --replace."
    )


class OthersRoleError(TlsError):
    """The token of one kind of daemon was used where another one is set up."""

    code = "US625"
    default_action = (
        "Make a token for this daemon (understudy token create ROLE NAME), and run the command again with it."
    )


class CertificateRevokedError(TlsError):
    code = "US476"
    default_cause = "it was revoked"
    default_action = (
        "If it still shall take part: create a new token (understudy token create ROLE NAME) and enrol it anew. If the config server"
        " takes it then, and others refuse it: it was restored from a backup; revoke ROLE:NAME there, and do so once more."
    )


class UnreachableError(PeerError):
    code = "US467"
    default_action = "Check that the other end runs and that the network lets this port through."


class NotReadyError(PeerError):
    code = "US468"
    default_cause = "it recovers its cache, or waits for blob storage"
    default_action = (
        "It goes on by itself. If it lasts, see what the process server reports (`understudy machine show`)."
    )
