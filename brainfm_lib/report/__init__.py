"""The report: pages brought up to date, executed, and made to stand alone."""
