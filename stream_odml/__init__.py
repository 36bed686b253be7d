"""stream_odml: streaming continual metric learning, served while it learns."""

__version__ = "0.2.0"
