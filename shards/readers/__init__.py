"""Readers of raw datasets, one file per dataset: NAME, NOTICE and read(root, ...), which returns a RawDataset."""
