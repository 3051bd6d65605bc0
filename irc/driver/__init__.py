"""The driver: the phases of a compilation, and what checks them."""
