"""The artifact: a folder on the disk, its files, and what its manifest says."""
