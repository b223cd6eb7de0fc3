"""Synthetic-data generator: renders two-person conversations with ground truth as ordinary MP4 files."""
