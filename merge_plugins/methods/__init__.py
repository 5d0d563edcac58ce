"""Built-in merge methods, one file per family, registered through the hook that plugins use."""

FAMILIES = (
    "averages",
    "spherical",
    "nuslerp",
    "multislerp",
    "karcher",
    "task_vectors",
    "della",
    "della_baselines",
    "stock",
    "sce",
    "ram",
    "nearswap_arcee",
    "mergellm",
    "widen",
    "mask_merging",
    "twin",
    "fisher_regmean",
    "cocktail",
    "tsv_iso",
    "wudi",
    "consensus",
    "pcb",
    "emr",
    "adamerging",
)
"""Files of this folder, in the order of ``merge-plugins list``."""

RENAMED = {
    "fisher_regmean": "calibrated",
    "mask_merging": "masks",
    "mergellm": "seeds",
    "nearswap_arcee": "swaps",
    "tsv_iso": "singular",
}
"""Present file name of a family: its name in digests, fixed at the first release so that renaming a
file leaves cached results valid."""
