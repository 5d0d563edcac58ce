"""Turn a merge into a live model, a checkpoint, a folder without weights or lazy tensors.

Imports transformers: name the module you need.
"""
