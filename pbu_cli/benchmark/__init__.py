"""The benchmark: every method on every class and seed, from data sets and trained networks to a
table, and the data of `pbu demo`. Only the commands `benchmark` and `demo` use this folder.
"""
