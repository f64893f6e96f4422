"""Services to copy from, and the demo that `make demo` runs."""
