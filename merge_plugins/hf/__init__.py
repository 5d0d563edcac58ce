"""Use transformers: live models, their classes and layer layout.

Imports transformers, which takes seconds: name the module you need.
"""
