"""The `understudy` command.

    main         entry: lazily loaded commands, errors as people read them, exit codes
    options      options that several commands share; where the config server is        profile  a file that says it
    output       tables and JSON; progress on stderr
    machine_commands, protection_commands, policy_commands, point_commands, restore_command, record_commands, certificate_commands,
    grant_commands, completion_command    the verbs (click)          names   of machines and daemons, as arguments
    versions     calls to a config server that may be older
    machine_pages tables and pages of machines         rebinding    whom `machine rebind` binds
    access       storage access for restores: granted by the config server, or the profile's
    rescue       from storage and vault alone, when every server is gone

Modules are imported when their command runs: `understudy --help` must be quick. The command never imports a
daemon: it asks them over the API. Other packages add verbs by entry points (`lab`, deploy/lab).
"""
