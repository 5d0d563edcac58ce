"""What a merge becomes: a live model, a checkpoint, a folder without weights, lazy tensors.

Imports transformers: name the module you need.
"""
