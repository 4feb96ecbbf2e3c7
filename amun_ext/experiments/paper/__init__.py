"""The paper's experiments: one file each, and one row in `amun_ext.experiments.reproduce.EXPERIMENTS`."""
