"""The Linux host: files that survive a crash, mounts, disks' stacks, memory."""
