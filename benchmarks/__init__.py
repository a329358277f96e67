"""Scripts that measure the package. They are not installed with it."""
