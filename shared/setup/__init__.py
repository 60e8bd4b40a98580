"""How a host becomes part of an installation: `understudy init` (the config server's), `python -m ROLE setup` (all others').

Both are a list of steps. Each says what is there, what it would do, and does it; what is there is kept, whoever made it. So the same
command again changes nothing, and completes what was cut off at any line.

    steps        what a step is, and how they are carried out
    files        folders, files that are given, configuration files with every key explained
    host         users, folders and unit of a daemon, by systemd or by hand
    checks       ports, the config server and its clock, the storage account
    enrolment    the daemon's certificate                     joining   the steps of whoever enrols
    storage      the account: options, its key and CA on this host
    command      the command line: options that all have, questions, what is printed

What is a daemon's own stands in `agent/setup.py`, `process_server/setup.py`, `master_target/setup.py` and `config_server/setup/`.
"""
