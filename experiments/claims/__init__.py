"""What the claims of the paper have in common: grids, selection, verdicts, pages."""
