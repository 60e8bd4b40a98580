"""The `understudy` command, and labs.

    main         entry: lazily loaded commands, errors as people read them, exit codes
    options      options that several commands share; where the config server is
    output       tables and JSON; progress on stderr
    machine_commands, point_commands, restore_command, record_commands, lab_commands    the verbs (click)
    access       storage access for restores: granted by the config server, or a lab's own files
    lab          a whole installation on this host: up, down, wipe, status
    lab_daemons  start until ready, stop, kill          lab_state    folder, settings, lock
    lab_files    configuration files and secrets        lab_registry which lab protects which disk
    processes    daemons that outlive the command       ports        who listens where
    azurite      the lab's blob storage, killed without losing what it acknowledged

Modules are imported when their command runs: `understudy --help` must be quick. The command never imports a
daemon: it starts them as processes and asks them over the API.
"""
