"""For those who work on the code: what the compiler and an Ascend make of it."""
