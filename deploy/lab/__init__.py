"""A lab: a whole installation on one host, started and stopped by `understudy lab …`.

    commands    the verbs (click)
    actions     up, status                              wipe      down, and the end of the story
    daemons     start until ready, stop, kill           state     folder, settings, lock
    files       configuration files and secrets         registry  which lab protects which disk
    processes   daemons that outlive the command        ports     who listens where
    vocabulary  which daemons there are                 whereabouts   is this folder that lab
    azurite     the lab's blob storage, killed without losing what it acknowledged

It never imports a daemon: it starts them as processes and asks them over the API.
"""
