"""Rasters of any size without torch: sources, plans of tiles, the engine with its journal, and files that come out."""
