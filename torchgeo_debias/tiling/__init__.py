"""Windows over rasters of any size: reading (`source`), planning (`plan`) and writing (`sink`), without torch."""
