"""Experiments, one file and one command each."""
