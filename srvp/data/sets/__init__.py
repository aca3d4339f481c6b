"""Data sets: a file each, from the raw files of their owners to prepared sets."""
