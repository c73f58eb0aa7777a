"""Every method on every class and seed, from data sets and freshly trained networks to a table.

No command but `benchmark` and `demo` uses anything of this folder.
"""
