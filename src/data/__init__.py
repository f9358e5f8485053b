"""The data sets, their halves, their augmentation."""
