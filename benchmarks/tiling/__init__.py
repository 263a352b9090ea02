"""The tiling engine beside its peers: one command, one table, and no comparison of unequal outputs."""
