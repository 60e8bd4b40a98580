"""The log of a machine in blob storage: `segment` (bytes; spool files are the same; `draft`: one that is being written), `index` and
`chain` (which segments count), `writer` (one at a time), `terms`, `reader`, `epochs` and `epoch_id`, `names`. Layout in FORMAT.md.
"""
