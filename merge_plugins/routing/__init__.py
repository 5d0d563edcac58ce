"""Weigh a merge's experts for each request. Parts import transformers: name the module."""
