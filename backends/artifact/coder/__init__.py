"""Entropy-coded weights: `encode.py` makes them, NAME_init decodes them (`decoder.py`; in C: `decoder.c`)."""
