"""Measured choices in place of the analytic ones: search, records, and their use in a plan."""
