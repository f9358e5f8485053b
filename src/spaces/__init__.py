"""What is searched: choices, operations, cells, supernets and the networks a genotype is retrained as."""
