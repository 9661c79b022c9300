"""Sweeps of knobs without a server: proposals, runs, and the table of results."""
