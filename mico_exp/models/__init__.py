"""Networks, and the trees of trained weights: state dicts in folders."""
