"""Look at models before they are merged: how far apart they are, and where, in one pass."""

from merge_plugins.compare.comparison import Comparison, compare
from merge_plugins.compare.models import Models, chosen, of_recipe

__all__ = ["Comparison", "Models", "chosen", "compare", "of_recipe"]
