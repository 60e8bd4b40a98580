"""Is this storage account fit for an installation? A check before anything is built on it.

    findings   what was found: aspects, states, the report (pure)
    judging    what storage's answers mean: answers → findings (pure)
    reaching   name, connection, TLS: hop by hop, each with its deadline
    asking     what the account and its containers say of themselves
    rights     what an installation does with storage, each tried for real
    scratch    what a check makes, and that it goes again
    running    the order of it all

`check` has one finding of each aspect, in order. The first hop that fails is an error, and what lies behind it unknown: nothing
waits longer than a deadline says, and nobody has to guess which of two errors is the cause of the other.
"""

from shared.blob.check.findings import Aspect, Finding, Report, State
from shared.blob.check.running import Limits, check

__all__ = ["Aspect", "Finding", "Limits", "Report", "State", "check"]
