"""All of the control plane's state in storage, sealed, and back: for the day on which this host is gone, too.

sealed        the envelope: what storage has of it, and who can open it (FORMAT.md)
state         what goes in
generation    which config server is in force, and why no two act
pointing      tells daemons where that is
keeping       puts the state there, as it changes
"""
