"""Long-tail methods side by side: data sets x imbalance x features x heads x seeds, see ``__main__``."""
