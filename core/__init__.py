"""Shared geometry, rendering and losses of monoface; knows no Lightning, no dataset and no method.

The conventions, each decided once and tested in ``tests/test_conventions.py``:

* **Axes**: ``b`` identities, ``v`` views or frames (1 for single images), then ``3 h w`` for images
  and ``n 3`` or ``n 2`` for points. float32; indices int64.
* **Images**: RGB in [0, 1] as stored (sRGB); shading multiplies in that space, as all five papers
  do.
* **Pixels**: origin at the top left *corner* of the image, x right, y down; the centre of the first
  pixel is (0.5, 0.5). ``align_corners=False`` throughout.
* **Model frame**: millimetres, x to the image's right for a frontal face (the subject's left), y
  up, z out of the face.
* **Camera frame**: x right, y down, z forward (OpenCV). A frontal face has the camera rotation
  diag(1, -1, -1).
* **Head rotation**: identity for a frontal face, acts on column vectors in the model frame; camera
  rotation = diag(1, -1, -1) @ head rotation. Radians everywhere; degrees only in reports and yaw
  bins.
* **Euler angles** as in 300W-LP: head rotation = Rx(pitch) Ry(yaw) Rz(roll). yaw > 0 turns the nose
  to the image's left, pitch > 0 raises it, roll > 0 turns the face clockwise in the image.
* **Clip space** exists only between ``camera.clip()`` and the rasterizer: x and y in [-1, 1] from
  the left and from the *top* edge of the image, z in [-1, 1] growing away from the viewer. Row 0 of
  a rasterized image is its top.
* **Triangles** are counter-clockwise seen from outside, in the model frame.
* **UV**: in [0, 1]^2, u right, v *down*, origin at the top left corner of the map, like pixels; the
  mirror axis is u = 0.5, so that a horizontal flip of a UV map is the face's left-right reflection.
  Files written for others follow their own format's v.
* **Lighting** lives in the camera frame: normals are rotated before shading. Real spherical
  harmonics times the Lambertian factors pi, 2 pi / 3, pi / 4.
* **Landmarks**: 68, iBUG order, 0-based, pixels of the given image; a missing one has confidence 0
  and finite coordinates.
* **Coefficients** of a face model are in standard deviations.
"""
