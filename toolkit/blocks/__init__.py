"""Building blocks shared by the models: one idea per file."""
