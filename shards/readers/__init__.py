"""Readers: a raw dataset as records, one file per dataset."""
