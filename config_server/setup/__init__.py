"""`understudy init`: the config server, with which an installation begins (`python -m config_server setup` is the same).

command    options, order of the steps, what to do next          (the steps that all set-ups have: shared/setup)
parts      vault, CA, first operator, as steps                   recovery   the recovery key, put where the operator says
unused     whether the storage account has an installation already
"""
