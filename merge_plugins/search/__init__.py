"""Search for the best merge: what may vary, what is to be made best, what was tried.

`objective` is the border between the search and those who score recipes.
"""
