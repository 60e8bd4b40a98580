"""From storage to disks again: `catalog` (what can be recovered) → `references` (what `--point` means) → `make_plan` → `materialise`.

    position     a position in the log, and times as people write them
    points       points' documents; point_store keeps them, listing shows them to people
    catalog      which points restore; history (the log's order), traces (epochs whose log is gone), undocumented (epochs of which the
                 document alone is gone)
    references   which point is meant; times (what a time means)
    plan         from which snapshots, over which batches; verify makes one and checks it; alone: with no log at all
    fit          whether the log fits the disks
    materialise  writes the images: coalesce (an interval's fewest writes), sparse (one image), folder (all of them, their journal and
                 manifest), unreadable (what of the source is missing), parallel (bounded concurrency); seed (what a snapshot says of
                 itself)

Format: FORMAT.md.
"""
