"""What disks are applied to.

    base        the interface
    state       what a disk records of itself: the rules that make every crash recoverable (pure)
    page_blob   a seed disk in blob storage, as vhd, the fixed VHD that Azure imports (pure)
    image_file  a sparse file of this host, with image_state, which says of which file its state is

Format: FORMAT.md.
"""
