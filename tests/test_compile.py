"""What is plain torch on a GPU can be traced by torch.compile, without a break.

In a process of its own: the shape checker, which the tests switch on, cannot be traced.
"""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import torch
from core.affine import affine
from core.camera import PerspectiveCamera, WeakPerspectiveCamera
from core.lighting import shade, shade_points
from core.normals import normalize, vertex_normals

torch.manual_seed(0)
triangles = torch.tensor([[0, 1, 2], [2, 1, 3], [0, 2, 4]])


def weak(points, rotation, scale, translation):
    camera = WeakPerspectiveCamera(rotation, scale, translation)
    return camera.clip(points, (60, 80)), *camera.project(points)


def perspective(points, rotation, translation, focal, centre):
    camera = PerspectiveCamera(rotation, translation, focal, centre)
    return camera.clip(points, (60, 80)), *camera.project(points)


cases = [
    (shade, torch.randn(2, 3, 4, 5), torch.randn(2, 9, 3)),
    (shade_points, torch.randn(2, 7, 3), torch.randn(2, 9, 1)),
    (lambda vertices: vertex_normals(vertices, triangles), torch.randn(2, 5, 3)),
    (normalize, torch.randn(2, 5, 3)),
    (affine, torch.randn(2, 5, 3), torch.randn(2, 4, 3), torch.randn(2, 4)),
    (weak, torch.randn(2, 5, 3), torch.randn(2, 3, 3), torch.rand(2), torch.randn(2, 2)),
    (
        perspective,
        torch.randn(2, 5, 3),
        torch.randn(2, 3, 3),
        torch.randn(2, 3) + 9,
        torch.rand(2),
        torch.randn(2, 2),
    ),
]
for function, *inputs in cases:
    for tensor in inputs:
        tensor.requires_grad_()
    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        outputs = run(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum(output.square().sum() for output in outputs)
        results.append((*outputs, *torch.autograd.grad(loss, inputs)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
"""


@pytest.mark.slow
def test_torch_compile_traces_every_function_whole():
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
