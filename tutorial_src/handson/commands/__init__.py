"""The commands of `python -m handson`, one module each."""
