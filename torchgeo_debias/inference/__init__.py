"""Trained models on rasters (`rasters`) and on the features of a layer (`features`)."""
