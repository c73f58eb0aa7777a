"""What other programs put into files: which state dict is the network's, under which prefix, and
which files are no checkpoint at all. The formats themselves are parsed in `io`."""
