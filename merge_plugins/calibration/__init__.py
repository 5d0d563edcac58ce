"""Compute statistics, losses and merge coefficients by running models on data."""
