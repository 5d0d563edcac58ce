"""Built-in merge methods, one file per family, registered through the hook anyone uses."""
