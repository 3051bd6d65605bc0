"""How many instructions a function executes, from the assembly text that LLVM makes of it: nothing is run."""
