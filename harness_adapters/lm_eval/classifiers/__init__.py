"""``lm_eval --model merged-classifiers``: GLUE and its like on merges of classifiers."""
