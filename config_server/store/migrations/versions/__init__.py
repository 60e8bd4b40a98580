"""One file a revision, NNNN_what.py. See the package above for what one may do."""
