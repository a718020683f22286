"""TODO"""
import torch
from core.rasterize import cpu
from core.rasterize.fragments import Fragments
from core.rasterize.topology import topology

def rasterize(clip, triangles, size, backend="auto"):
    known = topology(triangles)
    known.check(clip.shape[1])
    return cpu.rasterize(clip, known.triangles, size)

def interpolate(attributes, fragments, triangles):
    known = topology(triangles)
    known.check(attributes.shape[1])
    return cpu.interpolate(attributes, fragments, known.triangles)
