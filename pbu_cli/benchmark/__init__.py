"""Every method on every class and seed, the table of it, and the paper's own figures beside."""
