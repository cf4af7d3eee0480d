"""Export of trained models to Hugging Face, OpenCLIP, ONNX and torch.export."""

from sensorium.export.clip_folder import (
    CLIPExport,
    build_clip,
    write_hugging_face,
    write_open_clip,
)
from sensorium.export.export import ExportFormat, export_model, save_torch
from sensorium.export.graph import ExportableGraph, build_graphs, save_onnx

__all__ = [
    "CLIPExport",
    "ExportFormat",
    "ExportableGraph",
    "build_clip",
    "build_graphs",
    "export_model",
    "save_onnx",
    "save_torch",
    "write_hugging_face",
    "write_open_clip",
]
