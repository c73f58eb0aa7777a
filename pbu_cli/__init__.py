"""pbu: make a trained classifier forget a class, from that class's images alone."""

__version__ = "0.1.0"
