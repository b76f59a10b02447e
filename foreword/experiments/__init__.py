"""Reports and grids: what was run, drawn and tabulated on one page."""
