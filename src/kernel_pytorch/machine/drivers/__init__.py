"""The vendors' drivers: NVIDIA's NVML, AMD SMI, torch.xpu."""
