"""The log of a machine in blob storage: `segment` (bytes; spool files are the same), `index` and `chain` (which segments count), `writer`
(one at a time), `terms`, `reader`, `epochs`, `names`. Layout in FORMAT.md.
"""
