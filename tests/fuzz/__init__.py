"""A fuzzer of what reads bytes by others: it changes inputs, keeps those that lead somewhere new, and goes on from them."""
