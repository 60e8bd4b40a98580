"""From storage to disks again: `catalog` (what can be recovered, what `--point` means) → `verify.make_plan` → `materialise`.

Points and their documents: points, point_store. The log's order: history. Format: FORMAT.md.
"""
