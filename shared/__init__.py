"""What two or more of the daemons speak; it imports none of them.

On the data path, in its order: `batch` (what is sent, sealed and applied as one), `wire` (the session), `sealing`, `vault`,
`vault_record`, `remote_vault` and `key_cache` (keys), `log` (segments and their index), `active_side` (which copy of a machine is
it), `blob` (storage), `machine_storage` (where each machine lies in it), `recovery` (any point, from storage and key alone).

Beside it: `vocabulary` (closed vocabularies), `api`, `messages`, `status`, `rest` and `control_client` (control plane), `tls`,
`identity`, `enrol` and `revocation` (who a daemon is), `clock_evidence` and `moments` (whether a clock is wrong), `proxies`,
`connector`, `listening` (where a port is bound), `door` (who comes to it), `connections` (which of too many go) and `refusals` (in
the log, a few of many), `service`, `logging` and `log_sink` (what every daemon is), `naming` (what things may be called),
`storage_stack` (on which disks a path lies), `protected` (which of this host are protected), `limits` (of Azure), `durable` and
`single_writer` (files), `toml`, `configuration` (its files, for people), `decoding`, `threads`, `waiting`, `memory` (given back to
the system), `trouble`, `errors`, `crashpoints` (for tests), `version`.
"""
