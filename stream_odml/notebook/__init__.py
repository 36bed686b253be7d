"""A stream in a notebook: `import stream_odml as so; stream = so.open(root)`."""
