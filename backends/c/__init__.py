"""Networks as portable C99: kernels, weights and entry functions in one source file."""
