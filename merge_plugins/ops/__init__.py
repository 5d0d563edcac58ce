"""Maths on blocks of weights that several merge methods share."""
