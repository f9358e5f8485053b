"""The cell space of the DARTS paper: operations, cells, the supernet, genotypes and evaluation networks."""
