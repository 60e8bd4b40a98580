"""What two or more of the daemons speak; it imports none of them.

On the data path, in its order: `batch` (what is sent, sealed and applied as one), `wire/` (the session), `keys/` (what is sealed with),
`log/` (segments and their index), `blob/` (storage), `machine/` (where each machine lies in it, and which copy of it is active),
`recovery/` (any point, from storage and key alone).

The control plane: `api/` (bodies and routes), `desired` and `status` (what is wanted, what is), `control/` (how the config server is
called), `trust/` (who a daemon is, and whether he is believed), `setup/` (by which steps a host becomes part of an installation).

What each daemon stands on: `daemon/` (its run, its log, its threads), `serving/` (its port), `http/` (what clients share), `host/` (files,
mounts, disks), `configuration/` (its files, for people), `errors/`, `vocabulary` (closed vocabularies), `decoding`, `naming` (what
things may be called), `moments`, `waiting`, `crashpoints` (for tests), `version`.
"""
