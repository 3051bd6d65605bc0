"""Small programs that feed a network with samples on another machine, as source (`machines.py` builds them)."""
