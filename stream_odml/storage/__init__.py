"""Bytes anywhere: local disks and object stores, atomic writes, the layout of a root."""
