"""The config server, what it sees of others, and the command line: a job, a daemon, a clock is not as it must be."""

from __future__ import annotations

from shared.errors.base import NotFoundError, UnhealthyError


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


class RpoThresholdError(UnhealthyError):
    code = "US472"
    default_action = "Look at the hops of `understudy machine watch` for the one that is behind."


class NotReplicatedError(UnhealthyError):
    """A machine is protected, and as far as can be told here, nothing of it is replicated."""

    code = "US609"
    default_action = "Look at its agent (systemctl status understudy-agent on the machine, and its log)."


class NotFollowedError(UnhealthyError):
    """A machine's log grows in storage, and no master target takes it up: it gets no recovery points, and its seed disks stay behind."""

    code = "US613"
    default_action = (
        "Start a master target that may have it: one whose configuration names no machines takes all (`machines`). Until then it can be"
        " restored from its log alone."
    )


class ApplyBehindError(UnhealthyError):
    """Points are made all the same, and restores need nothing of it but time: a recovery has to apply the rest first."""

    code = "US614"
    default_action = (
        "Nothing, if it falls (hop `apply` of `understudy machine watch`). Else give the master target more: a faster line to storage, a"
        " larger account, another one for some of its machines."
    )


class NoProgressError(UnhealthyError):
    """There is something to do for a machine, nothing of it gets done, and nobody says why."""

    code = "US615"
    default_action = (
        "See the log of the daemon that should do it (the hops of `understudy machine show` name it), and restart it: what it has done"
        " is kept."
    )


class UnprotectedReplicationError(UnhealthyError):
    """A machine is replicated of which the config server's database says that nobody asked for it."""

    code = "US601"
    default_cause = "nobody asked for its protection, or it was ended, or was asked for after the backup that this database is from"
    default_action = (
        "Protect it, so that its own policy holds (understudy machine protect NAME), or have its agent stop: understudy machine"
        " unprotect NAME."
    )


class WishUntakenError(UnhealthyError):
    """An agent reports, and does not do what it is told."""

    code = "US610"
    default_action = (
        "See what the agent says of it (understudy event list --object NAME --open) and its log. It is told again with each of its"
        " reports."
    )


class WishInDoubtError(UnhealthyError):
    """This database was set back, or another one was in use, and nobody noticed; or a clock was wrong."""

    code = "US611"
    default_action = (
        "Say what is wanted of the machine: understudy machine protect NAME, or unprotect. That holds from then on."
        " If the config server's host was put back to a snapshot: restore backups with `python -m config_server restore` instead."
    )


class WishWithheldError(UnhealthyError):
    """An agent reports, and hears no opinion: nobody knows that its hardware is the machine, or which of its disks are meant."""

    code = "US644"
    default_action = (
        "If it stands on this hardware from now on: understudy machine rebind NAME. Else see that the config server reaches its storage, if"
        " it has one ([blob]), which says who the machine is (understudy machine copies NAME), and that no drill or clone reports as it."
    )


class OtherHardwareError(UnhealthyError):
    """A machine was bound to other hardware, or deleted, and another bears its name. It happened, and is over."""

    code = "US612"
    default_action = (
        "See that the right disks are protected (understudy machine disks NAME), and name them: understudy machine protect NAME --disk"
        " PATH."
    )


class NothingCapturedError(UnhealthyError):
    """A machine is to be protected, its agent goes by that, and captures nothing."""

    code = "US616"
    default_action = "Name its disks: understudy machine disks NAME, machine protect NAME --disk PATH."


class DisksKeptError(UnhealthyError):
    """An act left out disks of which nobody had said that they shall go. It happened, and is over."""

    code = "US617"
    default_action = (
        "Nothing, if they are to stay. Else name those that shall (--disk PATH for each), now that all are known: understudy machine"
        " protect NAME."
    )


class ServersKeptError(UnhealthyError):
    """An act named process servers that a backup knew, and its agent goes by others. It happened, and is over."""

    code = "US636"
    default_action = (
        "Nothing, if they are right. Else name those that are to be gone by, now that these are known: understudy machine protect NAME"
        " --process-server HOST:PORT."
    )


class WishRefusedError(UnhealthyError):
    """The config server wants of an agent what no agent can do."""

    code = "US622"
    default_action = "Ask for it as it can be; until then the agent goes on as before."


class NothingProtectedError(UnhealthyError):
    """An agent that protects nothing was asked for what needs a stream."""

    code = "US624"
    default_action = "Protect the machine (understudy machine protect NAME), then ask again."


class DeletionHinderedError(UnhealthyError):
    """A machine that is due to be deleted is in use: it replicates, or somebody reads it."""

    code = "US630"
    default_action = "It is deleted when that is over. To take it back: understudy machine keep NAME."


class DeletionUnconfirmedError(UnhealthyError):
    """A machine was to be deleted, and something else was said of it since, or may have been."""

    code = "US631"
    default_action = (
        "Say it again: understudy machine delete NAME; or that it stays: understudy machine keep NAME."
    )


class DeletionStorageError(UnhealthyError):
    """A machine that is due to be deleted, and storage that is away, or refuses to."""

    code = "US632"
    default_action = (
        "See that this server reaches storage, and may delete and change containers there (no legal hold, no lease, no immutability): it is"
        " tried again within ten minutes."
    )


class DeletionOfAnotherError(UnhealthyError):
    """A machine that is due to be deleted is not any more the one of which that was said."""

    code = "US633"
    default_action = "Is what bears the name now to go, say it again: understudy machine delete NAME; else: understudy machine keep NAME."


class ToBeDeletedError(UnhealthyError):
    """What was asked for is of no use to a machine that is to be deleted."""

    code = "US634"
    default_action = "Take the deletion back first: understudy machine keep NAME."


class BeingDeletedError(UnhealthyError):
    """It is too late to take a deletion back."""

    code = "US635"
    default_action = (
        "Wait until it is done; if it takes long, understudy machine show says what it waits for, and what to do. If storage keeps deleted"
        " containers (container soft delete), it brings this one back for so many days."
    )


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


class RevocationUnstoredError(UnhealthyError):
    """It is in the database, and a backup of that from before would not know it."""

    code = "US589"
    default_action = "Nothing, if storage comes back: it is tried again every minute. Until then a backup of state.db is worth more."


class RevocationsUncomparedError(UnhealthyError):
    """Storage was not asked since the start which revocations it has."""

    code = "US600"
    default_action = (
        "See that this server reaches storage and may read it: it tries again every minute. If its database is from a backup, it may admit"
        " until then who was revoked since; process servers and agents refuse whom they know to be. Whom you know of, revoke again."
        " Certificates are not renewed by it until then; who enrols with a new token gets one."
    )


class RenewalPutOffError(UnhealthyError):
    """A config server from a backup does not know yet who was revoked since, and whoever has a stolen certificate would get another."""

    code = "US602"
    default_cause = "the config server's database is from a backup, and was not compared with the revocations in storage yet"
    default_action = (
        "Nothing, while it is short: the certificate that is there serves, and it is tried again. Else see that the config server reaches"
        " storage (its event US600 says what keeps it); whose certificate ends before can be enrolled anew."
    )


class RevocationUnrecordedError(UnhealthyError):
    """Neither the database nor storage took it."""

    code = "US598"
    default_action = (
        "Mend the database's disk, or storage. Until this config server stops the revocation is in force, and it goes on trying to"
        " record it; make sure that it does before you restart it (understudy event list --open), or revoke again afterwards."
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


class OtherServerGoneError(UnhealthyError):
    """Another config server on the same database does nothing any more."""

    code = "US660"
    default_action = "See why on its host (systemctl status understudy-config-server), and start it again. Others do its work meanwhile."


class ServerNameTakenError(UnhealthyError):
    """Another config server on the same database has the same name."""

    code = "US661"
    default_action = "Give one of them another `name` in its config-server.toml, and start it again."


class ServerNotReadyError(UnhealthyError):
    """A config server that a load balancer should not send anybody to."""

    code = "US662"
    default_action = "See its log, and `understudy machine list` at another one."


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


class RestoreCancelledError(RestoreError):
    """Somebody cancelled the job of a restore, and its command stopped for that."""

    code = "US646"
    default_action = (
        "What is written so far stays: run the same command again, and it goes on where it stopped."
    )


class JobAttentionError(UnhealthyError):
    """A job stands still until a person says how it goes on."""

    code = "US638"


class JobBugError(UnhealthyError):
    """A step of a job met what nobody thought of: the job stands still, whatever the step has done until then."""

    code = "US641"
    default_action = (
        "See the config server's log, and report it. What else can be said of the job: understudy job show."
    )


class AgentRefusedError(UnhealthyError):
    """An agent did not do what it was asked to; why, in its own words."""

    code = "US642"
    default_cause = "it did not say why"


class JobEndedError(UnhealthyError):
    """A job that somebody waited for ended otherwise than done, or stands still."""

    code = "US639"


class LostJobError(UnhealthyError):
    """Another config server has the job now: this one's lease ended while it stood still. Nothing is to be done."""

    code = "US599"
    default_cause = "its lease ended, and another one took it"


class StorageUnfitError(UnhealthyError):
    """A check found what an installation cannot be built on."""

    code = "US618"
    default_action = "Mend the first of them (the others may follow from it), and check again."


class CaFilesError(UnhealthyError):
    """The files of the CA on one config server are not what its renewal wants."""

    code = "US656"
    default_action = (
        "Copy ca.key and ca.pem from the data folder of the config server that has it (understudy job show names it: what the"
        " ca-renewal waits for) into this one's, with the owner and modes that they have (docs/operations/keys.md). It goes on by itself."
    )


class ControlStateUnstoredError(UnhealthyError):
    """What a config server on another host would begin with is not in storage."""

    code = "US650"
    default_action = (
        "See that this server reaches storage and may write there; it is tried again within seconds. Until then a backup (python -m"
        " config_server backup) is worth more."
    )


class ServerSupersededError(UnhealthyError):
    """Another config server has taken the place of this one, which is read-only since."""

    code = "US651"
    default_action = (
        "Call that one. Stop this one (systemctl disable --now understudy-config-server). Shall this one be in force after all: stop the"
        " other, take a backup here, restore it here (python -m config_server backup, restore), and start."
    )


class ControlStateMissingError(NotFoundError):
    """Nothing in storage that a config server could begin with."""

    code = "US207"
    default_action = (
        "See that --blob-url and --blob-container are those of the installation. One that ran an older version left no control state: put"
        " a backup back, as docs/install.md has it (The config server is gone, too)."
    )
