"""The one error tree. Every error that a person can meet says what failed, why, and what to do.

    UnderstudyError                 exit 1
    ├── UsageError          US1xx   exit 2   the request itself is wrong
    ├── NotFoundError       US2xx   exit 3   the named thing does not exist
    ├── DeadlineError       US3xx   exit 4   it did not happen in time
    └── UnhealthyError      US4xx, US5xx  exit 5   the system cannot do it now
        ├── DeviceError             a block device or the kernel's capture
        ├── PeerError               the other end of a connection (US42x, US45x, US46x, US53x)
        │   ├── LocalProtocolError  our fault
        │   ├── RemoteProtocolError the peer's fault: frames, versions, order of batches
        │   └── TlsError            certificates, roles, bytes that are not TLS
        ├── StorageError            blob storage or a local disk
        │   ├── TransientError      worth another try (the only class that anything retries)
        │   │   └── ThrottledError  later, and with fewer requests at a time
        │   └── StorageRefusedError an operator must act; servers go on trying, slowly, and say so
        └── IntegrityError          data is not what it must be: digest, key, order

Codes are unique across the tree (a unit test checks it): a subclass with its own `code` is one kind of
failure. Foreign exceptions are translated to these at the edge where they appear.
"""

from __future__ import annotations

from typing import ClassVar, Final

UNDECODABLE: Final = (ValueError, RecursionError)
"""What msgspec raises for bytes that are not the document they should be. Its own errors are ValueErrors, and so is that for bad UTF-8;
what is nested too deeply exhausts the stack.
"""


class UnderstudyError(Exception):
    """What failed, why, and what to do about it.

    `what` names the failed operation and its object; `cause` the reason as far as it is known; `action` what
    the reader should do. A subclass may give defaults for cause and action.
    """

    code: ClassVar[str] = "US000"
    exit_code: ClassVar[int] = 1
    default_cause: ClassVar[str] = ""
    default_action: ClassVar[str] = ""
    ends_epoch: ClassVar[bool] = False
    """Continuity of the stream is lost: no retry helps, the agent must begin a new epoch."""

    def __init__(self, what: str, *, cause: str = "", action: str = "") -> None:
        self.what = what
        self.cause = cause or self.default_cause
        self.action = action or self.default_action
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what if not self.cause else f"{self.what}: {self.cause}"
        return text if not self.action else f"{text.rstrip('.')}. {self.action}"

    def as_dict(self) -> dict[str, str]:
        """The form in which errors appear in events, in the API and in `--output json`."""
        return {"code": self.code, "what": self.what, "cause": self.cause, "action": self.action}


class UsageError(UnderstudyError):
    code = "US100"
    exit_code = 2


class ConfigError(UsageError):
    code = "US101"
    default_action = "Correct it and start again."


class ListenError(UsageError):
    code = "US102"
    default_action = "Stop what uses this address (ss -ltnp shows it), or configure another port."


class EnrolmentError(UsageError):
    """A request for a certificate that is refused. Subclasses say why."""

    code = "US120"
    default_action = "Create a new token (understudy token create ROLE NAME) and enrol with it."


class TokenUnknownError(EnrolmentError):
    code = "US121"
    default_cause = "the config server never issued this token"
    default_action = "Check that it was copied whole and belongs to this config server, or create a new one."


class TokenUsedError(EnrolmentError):
    code = "US122"
    default_cause = "the token was used before, and each works only once"


class TokenExpiredError(EnrolmentError):
    code = "US123"
    default_cause = "the token has expired"


class TokenMalformedError(EnrolmentError):
    code = "US124"
    default_cause = "this is not an enrolment token"
    default_action = "Copy it whole, as `understudy token create` printed it."


class KeyRevokedError(EnrolmentError):
    """Whoever may have stolen the key would be admitted with the new certificate, which is no secret."""

    code = "US128"
    default_cause = "the request is for a key whose certificate was revoked"
    default_action = (
        "Delete key.pem, cert.pem and new-key.pem in the folder, and enrol again: the token was not used up."
    )


class RequestError(UsageError):
    """A request to the config server's API that it does not understand."""

    code = "US125"
    default_action = "Correct the request; the API is described in shared/api.py."


class RenewalNotDueError(RequestError):
    """Most of the certificate's life is left."""

    code = "US127"
    default_cause = "it was issued only lately, and most of its life is left"
    default_action = (
        "If this host's clock is ahead, set it right; it renews when a third of the life is left. If it is not this daemon that asks,"
        " its key is stolen: revoke the certificate."
    )


class AccessError(UsageError):
    """Who asks is not known, or may not do this."""

    code = "US126"
    default_action = "Use the operator token of this config server (option --token-file)."


class LabError(UsageError):
    code = "US130"


class ProtectedPlaceError(UsageError):
    """Something would be written to a disk that is itself protected."""

    code = "US131"
    default_action = "Give a folder on another disk."


class PointReferenceError(UsageError):
    """What was given to name a recovery point is not one of the forms that do."""

    code = "US140"
    default_action = (
        "Give latest, latest-processed, a point's id (`point list`), or an RFC 3339 time with offset."
    )


class RestoreFolderError(UsageError):
    code = "US141"
    default_action = (
        "Give a folder that does not exist, is empty, or holds an unfinished restore of the same point."
    )


class NotADiskError(UsageError):
    """The path names something other than a whole disk."""

    code = "US150"


class BindingDamagedError(ConfigError):
    """The file that says which disk is which cannot be read."""

    code = "US151"
    default_action = (
        "Put it back from a backup. Without it (delete it) each disk is bound to what stands under its path now: check "
        "that before, since a disk that is taken for another overwrites its replica."
    )


class NotFoundError(UnderstudyError):
    code = "US200"
    exit_code = 3


class DeviceNotFoundError(NotFoundError):
    code = "US220"
    default_action = "`lsblk` lists the block devices of this machine."


class MachineNotFoundError(NotFoundError):
    code = "US201"
    default_cause = "no machine of this name is known"
    default_action = "`understudy machine list` shows those that are."


class JobNotFoundError(NotFoundError):
    code = "US202"


class CommandNotFoundError(NotFoundError):
    code = "US203"


class LabNotFoundError(NotFoundError):
    code = "US204"
    default_action = "Give the folder of a lab (--dir or --lab), or start one: understudy lab up."


class PointNotFoundError(NotFoundError):
    """There is no recovery point at this position or time; the cause names the nearest ones."""

    code = "US210"
    default_action = "Choose one of the points named here, or see `understudy point list`."


class NoPointsError(PointNotFoundError):
    code = "US211"
    default_action = "Wait until the machine's first replication has completed: understudy machine watch."


class DeadlineError(UnderstudyError):
    code = "US300"
    exit_code = 4


class CommandExpiredError(DeadlineError):
    code = "US301"
    default_cause = "its daemon did not fetch it in time, and by now it may be unwanted"
    default_action = "See why the daemon does not report (understudy daemon list), then ask again."


class UnhealthyError(UnderstudyError):
    code = "US400"
    exit_code = 5


class DaemonError(UnhealthyError):
    """A daemon of a lab that did not start, or did not stop."""

    code = "US470"


class DisconnectedError(UnhealthyError):
    """A daemon that reported before and does not any more."""

    code = "US471"
    default_action = "Check that it runs and reaches the config server; capture goes on meanwhile."


class OutputError(UnhealthyError):
    """The result of a command could not be printed; what the command did is done."""

    code = "US479"
    default_action = "Send it elsewhere, or make room there."


class LogLostError(UnhealthyError):
    """A daemon's log lines cannot be written. It works on, and what is wrong is in its reports, but not what happened."""

    code = "US540"
    default_action = "Make room where its log goes (journal, file), or start what reads it again."


class RpoThresholdError(UnhealthyError):
    code = "US472"
    default_action = "Look at the hops of `understudy machine watch` for the one that is behind."


class AskerGoneError(UnhealthyError):
    """What was asked for is of use to nobody: whoever asked has gone. Seen in logs only."""

    code = "US580"
    default_cause = "whoever asked for it has closed the connection"
    default_action = "Ask again."


class ServersDisagreeError(UnhealthyError):
    """Several process servers say that a machine is with them."""

    code = "US581"
    default_action = (
        "Nothing, if the machine was moved and the older server is away from storage. Else restart the one that is not its server; if"
        " that goes on, revoke its certificate: understudy certificate revoke NAME."
    )


class RpoUnknownError(UnhealthyError):
    code = "US548"
    default_action = "Synchronise the machine's clock (NTP). It is measured again with the next state that gets to storage."


class ManyProblemsError(UnhealthyError):
    """A daemon reports more problems than anybody can read."""

    code = "US550"
    default_action = "Mend those that are shown; if they are senseless, revoke the daemon's certificate."


class LookFailedError(UnhealthyError):
    """What the config server does by itself every few seconds met what nobody had thought of."""

    code = "US551"
    default_action = "See the config server's log, and report it."


class DataFolderInUseError(UnhealthyError):
    """Another config server runs on the same data."""

    code = "US552"
    default_action = "Stop the other one, or give this one a data folder of its own."


class ClockSkewError(UnhealthyError):
    code = "US473"
    default_action = "Synchronise the clocks (NTP): recovery times are those of the machine's own clock."


class RestoreError(UnhealthyError):
    code = "US474"


class GrantLimitError(UnhealthyError):
    """Storage takes no more grants for a machine than it has."""

    code = "US500"
    default_action = (
        "Wait until one ends, or end one: understudy grant list MACHINE, understudy grant revoke MACHINE ID."
    )


class JobGivenUpError(RestoreError):
    """Nothing was heard of its worker; if there is one still, its next word counts."""

    code = "US553"
    default_cause = "the command that ran it has said nothing for two minutes"
    default_action = "Run the same command again: it continues where the other stopped."


class IdentityFileError(UnhealthyError):
    """A private key, a certificate or a CA could not be written on this host."""

    code = "US475"
    default_action = "Make room on the file system that holds it, or make it writable. What was there stays, and it is tried again."


class DeviceError(UnhealthyError):
    code = "US410"


class CaptureUnavailableError(DeviceError):
    """This machine, or this process, cannot capture with BPF."""

    code = "US411"
    default_action = "`python -m agent preflight DEVICE` says what this machine lacks."


class BpfError(DeviceError):
    """The kernel or libbpf refused a call; `number` is its errno."""

    code = "US412"
    default_action = "`python -m agent preflight DEVICE` says whether this kernel can capture."

    def __init__(self, what: str, *, cause: str = "", action: str = "", number: int = 0) -> None:
        super().__init__(what, cause=cause, action=action)
        self.number = number


class PinnedElsewhereError(DeviceError):
    """Capture is pinned for other disks, or by another version of the agent."""

    code = "US413"
    default_action = (
        "If it is this machine's own, stop the agent, run `python -m agent detach --config FILE` and start it again: everything is "
        "replicated anew, in a new epoch. If it is another installation's, give this one a pin_dir of its own."
    )


class CaptureRemovedError(PinnedElsewhereError):
    """Somebody removed a part of what captures: links, maps, or all."""

    code = "US570"
    default_action = (
        "None: capture is attached afresh, and a new epoch with a full resync begins by itself. Find out what removes pins from its folder "
        "(the pin_dir); to end capture, use `python -m agent detach`."
    )


class DiskResizedError(PinnedElsewhereError):
    """The same disks, but one has another size."""

    code = "US419"


class DetachError(DeviceError):
    """Something of a capture stayed in the kernel."""

    code = "US414"


class UnsuitableDiskError(DeviceError):
    """A disk that cannot be protected as it is."""

    code = "US415"


class AuditShortfallError(DeviceError):
    code = "US416"
    default_action = "None: a new epoch with a full resync begins by itself. Points made since the last exact audit are suspect."


class DiskReturnedError(DeviceError):
    """What a captured disk holds is not what capture left there."""

    code = "US571"
    default_action = "None: a new epoch with a full resync begins by itself. Points made since all disks were last seen are suspect."


class AuditBlindError(DeviceError):
    code = "US406"
    default_cause = "the kernel does not count the disk's sectors (iostats = 0)"


class EpochEndedError(DeviceError):
    """The stream cannot go on where it stopped."""

    code = "US407"
    default_action = "None: a new epoch with a full resync begins by itself. Older points stay restorable."


class OrderLostError(DeviceError):
    """Writes are known by their blocks only, for the moment."""

    code = "US408"
    default_action = "None: catch-up restores order by itself. If it recurs, give the ring more memory."


class UnreadableSourceError(DeviceError):
    code = "US409"
    default_cause = "the medium returned errors; recovery points name these sectors"
    default_action = "Replace the disk, or rewrite the sectors."


class DiskLeftOutError(DeviceError):
    """A disk that cannot be captured now, beside others that are."""

    code = "US404"
    default_action = "Attach it again: it is taken in by itself. If it shall not come back, take it out of the configuration."


class DiskHangsError(DeviceError):
    """A captured disk that is there and does not answer. It stays captured, and other disks are copied meanwhile."""

    code = "US592"
    default_action = (
        "Check the disk and what connects it (dmesg). While the machine's stream is in order, points go on; else none is made until the "
        "disk answers. If it shall not come back: take it out of the agent's configuration and restart the agent, and the others are "
        "replicated anew without it."
    )


class OtherDiskError(DeviceError):
    """Another disk stands where a protected one stood, or it cannot be told which it is."""

    code = "US405"
    default_action = (
        "Attach the right disk. If this one takes its place, protect it as a new disk: give it an id of its own, or remove the "
        "old one's line from disks.json in the agent's state_dir."
    )


class NoUsableDiskError(DeviceError):
    code = "US418"
    default_action = "Attach one of them, or correct the configuration: the agent needs at least one disk."


class AgentRunningError(DeviceError):
    code = "US417"
    default_cause = "another agent with the same state folder or the same pins is running"
    default_action = "Stop the other agent, or give this one a state_dir and a pin_dir of its own."


class PeerError(UnhealthyError):
    code = "US420"


class LocalProtocolError(PeerError):
    """Our fault: this end wanted to send what the session does not allow."""

    code = "US421"
    default_action = "This is a bug on this side; the connection is closed and made anew, nothing is lost."


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


class CertificateRevokedError(TlsError):
    code = "US476"
    default_cause = "it was revoked"
    default_action = "If it still shall take part: create a new token (understudy token create ROLE NAME) and enrol it anew."


class UnreachableError(PeerError):
    code = "US467"
    default_action = "Check that the other end runs and that the network lets this port through."


class NotReadyError(PeerError):
    code = "US468"
    default_cause = "it recovers its cache, or waits for blob storage"
    default_action = (
        "It goes on by itself. If it lasts, see what the process server reports (`understudy machine show`)."
    )


class StorageError(UnhealthyError):
    code = "US430"


class TransientError(StorageError):
    code = "US431"
    default_action = (
        "Check the network and the storage account. Servers try again by themselves; run a command again."
    )


class ThrottledError(TransientError):
    """Storage is busy and says so. `retry_after_s` is the pause that it asks for; 0 if it names none."""

    code = "US494"
    default_action = "Nothing: requests become fewer by themselves. If it lasts, the storage account is too small for what is asked of it."

    def __init__(self, what: str, *, cause: str = "", action: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(what, cause=cause, action=action)
        self.retry_after_s = retry_after_s


class KeyUnavailableError(TransientError):
    """A machine's data key was never here, and the config server, which has it, does not hand it out now."""

    code = "US510"
    default_action = "The machine waits, and goes on by itself once the config server answers; those whose keys are here go on."


class VaultUnrecordedError(TransientError):
    """No new key is wrapped under a vault of which storage knows nothing, and storage cannot be asked or told now."""

    code = "US561"
    default_action = "Machines that are new wait, and go on by themselves once the config server reaches storage and may write there."


class KeyCacheError(StorageError):
    """A file in which a daemon keeps a key that it was given. Nothing stops for it."""

    code = "US511"
    default_action = (
        "See that its folder is readable, writable and has room; it is tried again. Keys are asked for anew, which needs the config "
        "server. If this host was enrolled anew, or the file is damaged: it may be deleted."
    )


class StorageRequestError(StorageError):
    """Storage understood the request and says that it is wrong: no repetition helps."""

    code = "US489"
    default_action = "Report it with this message; what else the machine needs goes on."


class StorageRefusedError(StorageError):
    """Storage answers, but does not let us in: key, role, certificate, firewall, or the account itself. An
    operator must act; subclasses say what is wrong.
    """

    code = "US432"
    default_action = "Check the storage account's URL, its key or role assignment, and its certificate."


class StateFileError(StorageError):
    """A file of a daemon's own, which it needs to start or go on, cannot be read or written."""

    code = "US478"
    default_action = "Make room on its disk, or make it writable; then start the daemon again."


class DatabaseError(StateFileError):
    """The config server's database. What daemons report is still shown, from memory; nothing is remembered."""

    code = "US545"
    default_action = (
        "Check that its disk works, has space and is writable; if the file is damaged, restore a backup."
    )


class HostNoteError(StateFileError):
    """Other programs of this host are not told which disks are protected; protection goes on."""

    code = "US546"
    default_action = (
        "Make room in /run, or make it writable; it is tried again. Meanwhile nothing warns who puts a spool, a lab or a restore onto "
        "a protected disk."
    )


class RevokedListError(StateFileError):
    """The list of revoked certificates is in force, but not on the disk."""

    code = "US543"
    default_action = (
        "Make room on its disk, or make it readable and writable; it is tried again. A restart while the config server is away "
        "would admit who was revoked."
    )


class SideFileError(StateFileError):
    """Which copy of a machine is its active side is known, but not on the disk."""

    code = "US544"
    default_action = (
        "Make room on the cache disk, or make it writable; it is tried again. A restart while storage is away would keep the "
        "machine waiting."
    )


class BootFileError(StateFileError):
    """Which boot of a machine was admitted last is known, but not on the disk."""

    code = "US549"
    default_action = (
        "Make room on the cache disk, or make it writable; it is tried again. After a restart meanwhile, a copy of the machine would not "
        "be kept waiting for it, or the machine itself would wait for a moment."
    )


class StorageKeyError(StorageRefusedError):
    code = "US495"
    default_cause = "the storage account does not accept the key"
    default_action = (
        "Put one of the account's two access keys into the account key file, and restart the service, which reads "
        "it at its start."
    )


class GrantEndedError(StorageRefusedError):
    """Storage does not take what the config server had granted: its time is over, it was revoked, or it never included this."""

    code = "US501"
    default_action = (
        "Run the same command again: it gets a new grant, and a restore goes on where it stopped. If that is refused as well, "
        "`understudy grant list MACHINE` shows who revoked it."
    )


class StorageRightsError(StorageRefusedError):
    code = "US496"
    default_action = (
        "Assign the role Storage Blob Data Contributor on the account to this service's identity, and let the "
        "account's network rules admit this host."
    )


class StorageIdentityError(StorageRefusedError):
    """No key is configured, and Azure gives this host no identity."""

    code = "US446"
    default_action = (
        "Give this host a managed identity with a role on the account, or configure account_key_file."
    )


class ContainerMissingError(StorageRefusedError):
    code = "US497"
    default_cause = "the container does not exist"
    default_action = "Check the names of account and container. If the container was deleted, restore it (soft delete) first."


class AccountMissingError(StorageRefusedError):
    code = "US498"
    default_action = "Check the account's URL; whether the account still exists and is enabled; and DNS, if it has a private endpoint."


class PublicAccessRefusedError(StorageRefusedError):
    code = "US499"
    default_cause = "the request came without credentials, and the account admits no public access"
    default_action = (
        "Leave public access off; give this service the account's key, or an identity with a role."
    )


class StorageClockError(StorageRefusedError):
    """Storage refuses what is signed at a time too far from its own."""

    code = "US487"
    default_action = "Set this host's clock right (NTP: timedatectl, chronyc tracking); then it goes on."


class StorageCertificateError(StorageRefusedError):
    code = "US488"
    default_action = (
        "Configure the CA that signed it (ca_file), or find out what answers in the account's place."
    )


class StorageProtectedError(StorageRefusedError):
    """The account is set up so that what we must do is forbidden: immutability, legal hold, encryption."""

    code = "US448"
    default_action = "Change the account's data protection or encryption settings; docs/operations.md says what they must be."


class NotStorageError(StorageRefusedError):
    """Something between us and the account answers in its place."""

    code = "US447"
    default_action = (
        "Find the proxy, portal or firewall between this host and the account, and let blob storage pass."
    )


class BlobExistsError(StorageError):
    code = "US433"


class BlobNotFoundError(StorageError):
    code = "US434"


class PreconditionError(StorageError):
    """A conditional request found the blob changed (ETag, append position, sequence number)."""

    code = "US435"


class RangeError(PreconditionError):
    """The range that was to be read begins at or behind the blob's end. Nothing else that a condition can say means that."""

    code = "US590"


class BlobTooShortError(StorageError):
    """The blob ends before the range that was to be read."""

    code = "US449"
    default_action = "Its writer has not finished, or another program shortened it: see the machine's events."


class LeaseHeldError(StorageError):
    """Somebody else holds the lease."""

    code = "US436"
    default_action = "Nothing, if another of our servers is at work on it; it is tried again."


class LeaseLostError(StorageError):
    """The lease that the request named is not, or no longer, the blob's lease."""

    code = "US437"
    default_action = "Nothing: whoever holds the lease now goes on; it is tried again."


class FencedError(StorageError):
    """Another process server has taken the machine's log: this one may write no more of it."""

    code = "US438"
    default_action = (
        "Nothing: the agent goes on with the newer process server. If it repeats, look for a clone."
    )


class SpoolError(StorageError):
    """The process server's cache disk failed; what was not durable was not acknowledged and is sent again."""

    code = "US439"
    default_action = "Check the cache disk (dmesg, smartctl); the agent repeats what was not acknowledged."


class SpoolFullError(SpoolError):
    code = "US480"
    default_action = "Free space on the cache disk; nothing was lost, the agent waits and sends again."


class NotOpenError(StorageError):
    """A machine's log is used before it was begun."""

    code = "US484"
    default_cause = "no agent has begun a session yet"
    default_action = "It opens when the agent connects."


class SpoolLostError(SpoolError):
    """Batches that were acknowledged as spooled cannot be read back from the cache disk."""

    code = "US483"
    ends_epoch = True
    default_action = "Replace the cache disk. A new epoch begins by itself with a resync."


class SpoolStateError(SpoolError):
    """The note beside an epoch's spool files, which makes later checks stricter, cannot be written."""

    code = "US541"
    default_action = "Make room on the cache disk, or make it writable. Uploads go on; it is tried again."


class SpoolLeftoversError(SpoolError):
    """Spool files that are in storage cannot be deleted, and take room."""

    code = "US542"
    default_action = "Make the cache disk writable. Nothing is lost; it is tried again."


class SpoolVersionError(SpoolError):
    """A spool file was written by a newer program. It stays as it is."""

    code = "US401"
    default_action = "Run the version that wrote it until everything is uploaded, or upgrade again."


class SetAsideError(StorageError):
    """Acknowledged batches that can never be listed, because the log went on without them, are kept aside."""

    code = "US402"
    default_action = "Nothing, if the machine went on elsewhere. Delete the folder when nobody needs it."


class UploadsStoppedError(StorageError):
    """Acknowledged batches wait on the process server, and none gets to storage. What they say of the cause is the cause's own."""

    code = "US403"
    default_action = "Check the storage account and the network to it. Until then points stand still."


class StorageForgotError(StorageError):
    """Acknowledged data is gone from storage: the log has a hole that nobody here can fill."""

    code = "US481"
    ends_epoch = True
    default_cause = "storage has lost data that it had acknowledged"
    default_action = "A new epoch begins by itself with a resync; look for a failover of the storage account."


class EpochRefusedError(StorageError):
    """The agent's epoch is not the newest of its machine, or storage never heard of it."""

    code = "US482"
    ends_epoch = True
    default_action = "A new epoch begins by itself with a resync; if it repeats, look for a clone."


class OtherEpochError(EpochRefusedError):
    """The epoch that bears this number in storage is another one: the claims differ (shared/log/epoch_id.py)."""

    code = "US520"
    default_action = (
        "A new epoch begins by itself with a resync. Look for a restore or a failover of the storage account,"
        " and for a copy of the machine."
    )


class CacheQuotaError(StorageError):
    """A machine has used up its part of the process server's cache; its credit is 0 until some is
    uploaded."""

    code = "US485"
    default_action = "Storage takes less than the machine writes: check the upload, or raise the quota."


class CacheLowError(StorageError):
    """The cache as a whole has no room above its floor; all machines are throttled."""

    code = "US486"
    default_action = "Check the upload to storage, or make room on the cache disk."


class ImageFileError(StorageError):
    """A disk image on a local file system: full, I/O error, too short."""

    code = "US490"
    default_action = (
        "Make room or repair the file system that holds it; the work then resumes where it stopped."
    )


class SeedDiskError(StorageError):
    """A seed disk is not in the state that its own records promise, or its source disk does not fit it."""

    code = "US491"
    default_action = "Look for another writer of this disk; a new epoch (resync) makes it whole again."


class DiskTooLargeError(SeedDiskError):
    code = "US477"
    default_action = (
        'Use another target for this machine (target = "image" of the master target), or leave the disk out.'
    )


class IntegrityError(UnhealthyError):
    code = "US440"


class SegmentMissingError(IntegrityError):
    code = "US441"
    default_action = "Restore a point before it, or a later one that has snapshots of its own."


class SegmentTruncatedError(SegmentMissingError):
    code = "US442"


class SegmentAlteredError(SegmentMissingError):
    code = "US443"


class OtherEpochSegmentError(SegmentMissingError):
    """A segment that another epoch with the same number wrote (shared/log/epoch_id.py)."""

    code = "US521"
    default_action = "Storage was restored in part, or mixed: restore all of the machine's log from one copy, or a point of a later epoch."


class SegmentVersionError(SegmentMissingError):
    """A newer program wrote it."""

    code = "US457"
    default_action = "Upgrade this program to the version of the one that wrote it."


class WrongKeyError(IntegrityError):
    code = "US444"
    default_action = (
        "Use the vault file of the installation that wrote it (the config server's), or a backup of it."
    )


class VaultMisfitError(IntegrityError):
    """Storage knows a vault key that the vault file lacks (shared/vault_record.py)."""

    code = "US560"
    default_action = (
        "Put the installation's vault file, or its newest backup, in its place, and restart. If both files were used, put their keys "
        "together: python -m shared.vault FILE --add OTHER. Only if a key is lost for good, with all that it sealed: delete its "
        "record, vault/N.json in the vault container."
    )


class IndexDamagedError(IntegrityError):
    code = "US445"
    default_action = "The log behind it cannot be used: restore an earlier point, resynchronise the machine."


class IndexMissingError(IndexDamagedError):
    """A blob of the log index, or the document of an epoch, is gone, and what is left says that it was there."""

    code = "US591"
    ends_epoch = True
    default_action = (
        "Restore an earlier point (`understudy point list`). A new epoch begins by itself, with a resync."
    )


class LogGapError(IntegrityError):
    """The log index does not lead from where we are to where we must be."""

    code = "US492"
    default_action = (
        "Choose another point: what this one needs was pruned or lost. See `understudy point verify`."
    )


class LogMisfitError(IntegrityError):
    """The log of an epoch contradicts the epoch's own list of disks."""

    code = "US458"
    default_action = "This is a bug in the agent, or a foreign log. Resynchronise the machine; restore a point of another epoch."


class SnapshotError(IntegrityError):
    """A snapshot that a recovery point names is missing, or does not name the point's position."""

    code = "US493"
    default_action = "The point can still be restored from the log while that is retained."
