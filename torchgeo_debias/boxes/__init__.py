"""Horizontal and oriented boxes on plain arrays: forms, overlap, suppression in one go or tile row by tile row.

Two forms of box, both float64:

* *horizontal*, (N, 4): ``x0, y0, x1, y1`` with ``x0 <= x1`` and ``y0 <= y1``;
* *oriented*, (N, 5): centre ``cx, cy``, length ``w`` along the box's own axis, width ``h`` across it, and ``angle``.

**Angle.** Degrees from the first axis of the frame (x) towards its second (y), up to the box's own axis. In map
coordinates, where y points north, that is counter-clockwise from east, the angle that users see. In the pixel frame
(column, row), where y points down, the same rule turns clockwise on the screen; `convert.transformed` carries boxes
from one frame to the other and turns their angles with them. Nothing else here needs to know the frame.

*Canonical* is an oriented box with ``w >= h`` and an angle in [0, 180), or in [0, 90) where ``w == h``: each rectangle
has one such row.
"""
