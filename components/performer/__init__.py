"""Renders two-person conversations with known truth, as ordinary MP4 files."""
