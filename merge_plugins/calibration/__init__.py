"""Compute what data tells about a model: statistics, losses, coefficients."""
