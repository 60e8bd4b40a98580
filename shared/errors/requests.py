"""The request itself is wrong, names nothing that exists, or was not answered in time (US1xx, US2xx, US3xx)."""

from __future__ import annotations

from shared.errors.base import DeadlineError, NotFoundError, UsageError


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
    default_action = (
        "Correct the request; the API is described in docs/api.md, and by the server at /v1/openapi.json."
    )


class FewerDisksError(RequestError):
    """Disks that are protected now would not be any more, and that was not said."""

    code = "US129"
    default_action = (
        "Name all that shall stay protected (--disk PATH for each), or say that these shall go: --yes (`fewer` in the API)."
        " Their points stay."
    )


class SaidSinceError(RequestError):
    """Who asks saw another act than the one that holds by now."""

    code = "US133"
    default_action = "See `understudy machine show NAME`, and say anew what you want."


class ChangedSinceError(RequestError):
    """Who asks has read another version of it than there is by now, or has read none and there is one."""

    code = "US136"
    default_action = "Read it again, and ask again over what it is now."


class VersionNeededError(RequestError):
    """What is there would be replaced by somebody who does not say that he has read it."""

    code = "US137"
    default_cause = "it does not say over which version"
    default_action = (
        "Read it, and send its `version` in quotes as If-Match, or `If-Match: *` to replace whatever is there. A command line of an"
        " earlier version has to be upgraded."
    )


class KeyUsedError(RequestError):
    """Another request was made with this Idempotency-Key."""

    code = "US138"
    default_action = "Give each request a key of its own; the same request again has the same."


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


class ForbiddenError(UsageError):
    """Who asks is known, and is not allowed this."""

    code = "US132"
    default_action = "Ask somebody who is, or to be allowed it."


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


class MachineNotFoundError(NotFoundError):
    code = "US201"
    default_cause = "no machine of this name is known"
    default_action = "`understudy machine list` shows those that are."


class NeverReportedError(MachineNotFoundError):
    code = "US206"
    default_cause = "its agent has never reported"
    default_action = "Start its agent; its log (journalctl -u understudy-agent) says what hinders it."


class JobNotFoundError(NotFoundError):
    code = "US202"


class JobActError(RequestError):
    """What was said of a job is not to be said of it as it is now."""

    code = "US134"
    default_action = "Look at it: understudy job show ID."


class LaneTakenError(RequestError):
    """Another job is under way that this one would get into the way of."""

    code = "US135"
    default_action = "Wait for it (understudy job watch ID), or cancel it (understudy job cancel ID)."


class CommandNotFoundError(NotFoundError):
    code = "US203"


class LabNotFoundError(NotFoundError):
    code = "US204"
    default_action = "Give the folder of a lab (--dir or --lab), or start one: understudy lab up."


class PolicyNotFoundError(NotFoundError):
    code = "US205"
    default_cause = "no policy of this name is known"
    default_action = "`understudy policy list` shows those that are; `understudy policy set NAME` makes one."


class PointNotFoundError(NotFoundError):
    """There is no recovery point at this position or time; the cause names the nearest ones."""

    code = "US210"
    default_action = "Choose one of the points named here, or see `understudy point list`."


class NoPointsError(PointNotFoundError):
    code = "US211"
    default_action = "Wait until the machine's first replication has completed: understudy machine watch."


class CommandExpiredError(DeadlineError):
    code = "US301"
    default_cause = "its daemon did not fetch it in time, and by now it may be unwanted"
    default_action = "See why the daemon does not report (understudy daemon list), then ask again."
