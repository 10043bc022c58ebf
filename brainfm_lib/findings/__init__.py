"""What the runs of a study say: tables that pages draw, and what commands print."""
