"""Kernels as C text: TIR printed, and kernels that are written in C."""
