"""Debian hosts with a systemd of their own, in containers: for what only a service manager, a boot or a network between hosts shows.

    with site() as here, four(here) as installation:     with site() as here:
        installation.install()                               host = here.container("alpha")
        installation.start_servers()                         host.start()
        …                                                    host.run("systemctl", "start", "…")

    rootfs        the file system that all begin with, built once; each has an upper folder of its own
    program       the project's wheels, and its installation into a container
    world         namespaces, gone with whoever asked for them             its first process: holder
    network       one bridge, a link each, names; links are cut and mended
    nspawn        one boot of a container, from power on to off
    container     what its operator does: power, commands, files, disks, units
    belongings    what a host has, compared before an installation and after its removal
    site          some of them beside each other                           what a killed test left: leftovers
    installation  config server, process server, master target and a protected machine, each by its unit

What is real: systemd as the first process, its units with all their hardening (users, namespaces, seccomp, capabilities, credentials,
device policy), journal, watchdog, boot and shutdown; the network between hosts; BPF, and a bpffs that a boot begins empty.

What is not, since all have one kernel, the host's: modules, clock, /sys (every block device is in it, but only those that were handed in
can be opened), SMBIOS; the kernel's lists of BPF programs and loop devices are the host's. A reboot ends no write that the kernel was
given. Resource limits of units (MemoryMax=, CPUWeight=) hold only where the host's controllers are in the hierarchy v2. There is no udev:
no /dev/disk.
"""
