"""`understudy init`: the config server, with which an installation begins (`python -m config_server setup` is the same); and
`understudy server recover`, which takes the place of one that is gone (`python -m config_server recover`).

command    options, order of the steps, what to do next          (the steps that all set-ups have: shared/setup)
parts      vault, CA, first operator, as steps                   recovery   the recovery key, put where the operator says
unused     whether the storage account has an installation already
recover_command  options of `server recover`, and the order     recovering   the state in storage, put onto this host, as steps
lost       whether this installation had a data folder that is gone
"""
