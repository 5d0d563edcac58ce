"""Bridges: merge methods that other programs' plugins registered, as methods of ours."""
