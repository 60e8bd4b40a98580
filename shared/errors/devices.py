"""Block devices and the kernel's capture: what the agent meets on the machine that it protects."""

from __future__ import annotations

from shared.errors.base import ConfigError, NotFoundError, UnhealthyError, UsageError


class NotADiskError(UsageError):
    """The path names something other than a whole disk."""

    code = "US150"


class BindingDamagedError(ConfigError):
    """The file that says which disk is which cannot be read."""

    code = "US151"
    default_action = (
        "Put it back from a backup. Without it (delete it) the disks that are captured since the machine booted go on as what they are. Of"
        " the others, each that agent.toml names is bound to what stands under its path now: check that before, since a disk that is taken"
        " for another overwrites its replica. One that the config server wants by its id is refused, and says how to go on"
        " (US405)."
    )


class DeviceNotFoundError(NotFoundError):
    code = "US220"
    default_action = "`lsblk` lists the block devices of this machine."


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


class PinsDamagedError(DeviceError):
    """What is pinned beside a capture says nothing that an agent writes."""

    code = "US645"
    default_action = (
        "None: capture goes on, and it is written anew. Find out what writes into the pin_dir; until the agent has started once more, leave"
        " its state_dir as it is."
    )


class PutBackError(DeviceError):
    """A disks.json from a backup says other disks than are captured, and not all of it is proved: nothing is done by it."""

    code = "US647"
    default_action = (
        "Which disk is which says understudy machine disks NAME. If what is captured is right, remove disks.json.put-back. If that file is:"
        " stop the agent first (a running one writes over what is put there), `python -m agent detach`, copy it to disks.json, start the"
        " agent; all disks are replicated anew."
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


class NeverIdleError(DeviceError):
    """No look of the audit found a moment at which nothing was written to the disk (agent/continuity/unaudited.py)."""

    code = "US597"
    default_cause = "it was never idle: what is being written hides whether anything is missing, also a completion that was missed"
    default_action = (
        "None: capture goes on, and the audit finds the next idle moment, of microseconds, by itself. If the disk never has any, "
        "resynchronise the machine now and then. If a write to it is said not to complete (US587), order waits for such a moment, too: "
        "hold up what writes to it, for some seconds."
    )


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
    default_action = (
        "Replace the disk, or rewrite the sectors. They are tried again by themselves, from a minute after on, and copied when they can "
        "be read."
    )


class DiskLeftOutError(DeviceError):
    """A disk that cannot be captured now, beside others that are."""

    code = "US404"
    default_action = "Attach it again: it is taken in by itself. If it shall not come back, take it out of the configuration."


class CapturedTwiceError(DeviceError):
    """A captured disk that lies on another one that is captured: each is right by itself, and both together cost twice."""

    code = "US596"


class SharedIdentityError(DeviceError):
    """A captured disk that nothing but its capture tells from others of its machine."""

    code = "US603"
    default_action = (
        "Before the machine is rebooted, detach the others if they are its clones; or configure the disk by its port (device below "
        "/dev/disk/by-path), or by an identity that it alone bears (python -m agent preflight DEVICE prints what it has)."
    )


class DiskHangsError(DeviceError):
    """A captured disk that is there and does not answer. What was captured of it stays true, and other disks are copied meanwhile; if
    something of it has to be read, they go on without it after a while (agent/continuity/hanging.py)."""

    code = "US592"
    default_action = (
        "Check the disk and what connects it (dmesg). While the machine's stream is in order, points go on. If something of the disk has "
        "to be read, none is made; after a minute (longer, up to an hour, if that happens again within a day) the others go on without "
        "it, in a new epoch, and it is taken in again when it answers. If it shall not come back, take it out of the agent's configuration."
    )


class SlowReadError(DeviceError):
    """A read of a part of a disk does not come back, while others that were asked for later do (agent/stream/lane.py)."""

    code = "US586"
    default_action = (
        "Check the disk (dmesg, smartctl): some try for minutes to read a bad sector. The rest of it is copied meanwhile. What that read "
        "finds bad is named and left out; until it has come back the machine has no new points."
    )


class PartRefusedError(DeviceError):
    """A disk refuses more than a little of it, while it gives others: a leg of a volume is away, say (agent/stream/refusals.py)."""

    code = "US593"
    default_action = (
        "Check what the disk is made of (dmesg; lvs, mdadm, multipath): is a part of it away? The rest is copied meanwhile. If it is not "
        "given within some minutes, it is named unreadable and left out, so that there are new points; it is copied when it is back."
    )


class TooMuchUnreadableError(DeviceError):
    """A disk refuses so much that there is no room to name it (agent/stream/unreadable_words.py)."""

    code = "US594"
    default_action = (
        "Check the disk and what it is made of (dmesg, smartctl; lvs, mdadm, multipath). If a part of it is away, bring it back: what is "
        "refused is asked for again every few seconds. If the disk is bad all over, replace it or take it out of the agent's "
        "configuration. Until then the machine has no new points; after a minute or more its other disks, if it has any, go on without it."
    )


class WriteHangsError(DeviceError):
    """A write to a captured disk does not complete, or its completion was missed, while reads of it are answered. Before it is known to
    have completed, what is read there is not final."""

    code = "US587"
    default_action = (
        "Find out what holds it up (dmesg; a thin pool that is full, a device that is suspended, paths that queue). Since the disk answers "
        "reads, the others do not go on without it: the machine has no new points until the write has completed or failed. If nothing "
        "hangs, its completion may have been missed, and order waits for a moment at which nothing is written to the disk: hold up what "
        "writes to it, for some seconds. If it never will complete, take the disk out of the agent's configuration."
    )


class OtherDiskError(DeviceError):
    """Another disk stands where a protected one stood, or it cannot be told which it is."""

    code = "US405"
    default_action = (
        "Attach the right disk. If this one takes its place, protect it as a new disk: understudy machine protect NAME with its path, or"
        " give it an id of its own in agent.toml."
    )


class NoUsableDiskError(DeviceError):
    code = "US418"
    default_action = "Attach one of them, or correct the configuration: the agent needs at least one disk."


class AgentRunningError(DeviceError):
    code = "US417"
    default_cause = "another agent with the same state folder or the same pins is running"
    default_action = "Stop the other agent, or give this one a state_dir and a pin_dir of its own."
