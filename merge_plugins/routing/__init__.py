"""Weigh a merge's experts for each request.

Some modules import transformers: name the module you need.
"""
