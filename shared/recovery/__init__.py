"""From storage to disks again: `catalog` (what can be recovered, what `--point` means) → `verify.make_plan` → `materialise`.

Points and their documents: points, point_store. The log's order: history; what a time means: times; whether
the log fits the disks: fit. Format: FORMAT.md.
"""
