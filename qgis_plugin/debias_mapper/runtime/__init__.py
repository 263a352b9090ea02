"""What the plugin needs beside QGIS: the worker process, its protocol, and the Python environment it lives in.

Nothing here imports ``qgis``, so all of it runs and is tested under a plain Python, 3.9 or newer.
"""
