"""The reference run: the whole study within a budget of minutes, on one GPU or whatever there is."""
