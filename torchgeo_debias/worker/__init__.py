"""The door for other programs, such as QGIS: the verbs of the command line over stdin and stdout.

``python -I -m torchgeo_debias.worker`` speaks one JSON object a line. Nothing heavy is imported before the first run.
"""
