"""Old module paths: the same objects, one warning; everything else is silent and light."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kernel_pytorch import distributed_scale, legacy, utils

# Old module -> names that users import from it.
SHIMS = {
    "kernel_pytorch.distributed_scale.communication_optimization": [
        "AdvancedCollectiveOps",
        "CollectiveOpConfig",
        "CommunicationMetrics",
        "CommunicationPattern",
        "CompressionMethod",
        "NetworkTopology",
        "create_collective_ops",
        "create_default_topology",
        "register_comm_hook",
        "NetworkTopologyOptimizer",
        "create_topology_optimizer",
        "BandwidthAwareScheduler",
        "create_bandwidth_scheduler",
        "create_adaptive_scheduler",
        "CommunicationProfiler",
        "create_communication_profiler",
    ],
    "kernel_pytorch.distributed_scale.hardware_adaptation": [
        "HardwareVendor",
        "DeviceCapability",
        "ThermalState",
        "DeviceInfo",
        "NodeTopology",
        "ClusterTopology",
        "RankPlace",
        "HardwareTopologyManager",
        "create_hardware_manager",
        "ThermalAwareScheduler",
        "PowerEfficiencyOptimizer",
        "create_thermal_scheduler",
        "HardwareHealthMonitor",
        "HealthState",
        "Thresholds",
        "HardwareAdapter",
        "DeviceMeshOptimizer",
        "create_device_mesh_optimizer",
    ],
    "kernel_pytorch.distributed_scale.orchestration": [
        "JobState",
        "ResourceType",
        "FailureType",
        "ResourceRequirement",
        "TrainingJobSpec",
        "JobStatus",
        "ClusterNode",
        "SLURMClusterManager",
        "create_slurm_manager",
        "ClusterUnavailableError",
        "JobNotFoundError",
        "FaultToleranceManager",
        "create_fault_tolerance_manager",
    ],
    "kernel_pytorch.utils.compiler_optimization_assistant": [
        "CompilerOptimizationAssistant",
        "OptimizationResult",
        "CodeAnalyzer",
        "ModelAnalysisResult",
        "ModelArchitectureAnalyzer",
        "PerformanceBottleneckDetector",
        "OptimizationImplementer",
        "OptimizationRecommendation",
        "OptimizationRecommendationEngine",
    ],
}


def run(script: str, action: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", action, "-c", script], capture_output=True, text=True)


def test_every_shim_is_tested():
    assert set(SHIMS) == set(legacy.MOVED)


@pytest.mark.parametrize("module", SHIMS)
def test_a_shim_warns_once_where_it_is_imported(module: str):
    done = run(f"import {module}\nimport {module}\nfrom {module} import {SHIMS[module][0]}", "always")
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert warning.startswith(f"<string>:1: FutureWarning: {module} is now ")
    assert warning.endswith("; the old module is removed in v0.3.0")
    for home in legacy.MOVED[module]:
        assert home in warning


@pytest.mark.parametrize("module", SHIMS)
def test_a_shim_has_the_same_objects(module: str):
    script = f"""
import warnings; warnings.simplefilter("ignore")
import importlib, {module} as old
homes = [importlib.import_module(home) for home in {legacy.MOVED[module]}]
for name in {SHIMS[module]} + [name for home in homes for name in home.__all__]:
    found = [getattr(home, name) for home in homes if hasattr(home, name)]
    assert found and all(getattr(old, name) is one for one in found), name
"""
    done = run(script, "error")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", sorted({home for homes in legacy.MOVED.values() for home in homes}))
def test_the_new_modules_are_silent_and_import_nothing_heavy(module: str):
    heavy = ("torch", "pynvml", "amdsmi", "prometheus_client", "matplotlib", "rich")
    script = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = run(script, "error")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_package_loads_names_when_they_are_used():
    script = """
import sys, kernel_pytorch.distributed_scale as scale
print([name for name in sys.modules if name.startswith(scale.__name__ + ".")])
scale.HardwareAdapter
from kernel_pytorch.distributed_scale import *
print(HardwareVendor.AMD.value, "hardware_adaptation" in dir(scale))
"""
    done = run(script, "error")
    assert (done.returncode, done.stdout) == (0, "[]\namd False\n"), done.stderr


@pytest.mark.parametrize("package", [distributed_scale, utils], ids=["distributed_scale", "utils"])
def test_the_package_has_all_public_names(package):
    old = [module for module in SHIMS if module.startswith(f"{package.__name__}.")]
    every = [name for module in old for name in SHIMS[module]]
    assert sorted(every) == package.__all__
    assert set(every) <= set(dir(package))
    for name in every:
        assert getattr(package, name).__name__ == name
    message = f"module '{package.__name__}' has no attribute 'Nothing'"
    with pytest.raises(AttributeError, match=message):
        _ = package.Nothing
