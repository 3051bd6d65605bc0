"""irc, the compressing compiler."""

__version__ = "0.1.0"
