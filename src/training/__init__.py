"""The LightningModules of the two commands."""
