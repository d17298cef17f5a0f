"""A job and its hardware: specification, topology, condition and placement. Names are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from .cluster_management import ClusterUnavailableError as ClusterUnavailableError
    from .cluster_management import JobNotFoundError as JobNotFoundError
    from .cluster_management import SLURMClusterManager as SLURMClusterManager
    from .cluster_management import create_slurm_manager as create_slurm_manager
    from .communication_primitives import AdvancedCollectiveOps as AdvancedCollectiveOps
    from .communication_primitives import CollectiveOpConfig as CollectiveOpConfig
    from .communication_primitives import CommunicationMetrics as CommunicationMetrics
    from .communication_primitives import CommunicationPattern as CommunicationPattern
    from .communication_primitives import CompressionMethod as CompressionMethod
    from .communication_primitives import NetworkTopology as NetworkTopology
    from .communication_primitives import create_collective_ops as create_collective_ops
    from .communication_primitives import create_default_topology as create_default_topology
    from .communication_primitives import register_comm_hook as register_comm_hook
    from .communication_profiling import CommunicationProfiler as CommunicationProfiler
    from .communication_profiling import create_communication_profiler as create_communication_profiler
    from .fault_tolerance import HardwareHealthMonitor as HardwareHealthMonitor
    from .fault_tolerance import HealthState as HealthState
    from .fault_tolerance import Thresholds as Thresholds
    from .hardware_adapter import DeviceMeshOptimizer as DeviceMeshOptimizer
    from .hardware_adapter import HardwareAdapter as HardwareAdapter
    from .hardware_adapter import create_device_mesh_optimizer as create_device_mesh_optimizer
    from .hardware_discovery import ClusterTopology as ClusterTopology
    from .hardware_discovery import DeviceCapability as DeviceCapability
    from .hardware_discovery import DeviceInfo as DeviceInfo
    from .hardware_discovery import HardwareTopologyManager as HardwareTopologyManager
    from .hardware_discovery import HardwareVendor as HardwareVendor
    from .hardware_discovery import NodeTopology as NodeTopology
    from .hardware_discovery import RankPlace as RankPlace
    from .hardware_discovery import ThermalState as ThermalState
    from .hardware_discovery import create_hardware_manager as create_hardware_manager
    from .job_management import ClusterNode as ClusterNode
    from .job_management import FailureType as FailureType
    from .job_management import JobState as JobState
    from .job_management import JobStatus as JobStatus
    from .job_management import ResourceRequirement as ResourceRequirement
    from .job_management import ResourceType as ResourceType
    from .job_management import TrainingJobSpec as TrainingJobSpec
    from .network_optimization import BandwidthAwareScheduler as BandwidthAwareScheduler
    from .network_optimization import NetworkTopologyOptimizer as NetworkTopologyOptimizer
    from .network_optimization import create_adaptive_scheduler as create_adaptive_scheduler
    from .network_optimization import create_bandwidth_scheduler as create_bandwidth_scheduler
    from .network_optimization import create_topology_optimizer as create_topology_optimizer
    from .scaling_fault_tolerance import FaultToleranceManager as FaultToleranceManager
    from .scaling_fault_tolerance import create_fault_tolerance_manager as create_fault_tolerance_manager
    from .thermal_power_management import PowerEfficiencyOptimizer as PowerEfficiencyOptimizer
    from .thermal_power_management import ThermalAwareScheduler as ThermalAwareScheduler
    from .thermal_power_management import create_thermal_scheduler as create_thermal_scheduler

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "cluster_management": [
            "ClusterUnavailableError",
            "JobNotFoundError",
            "SLURMClusterManager",
            "create_slurm_manager",
        ],
        "communication_primitives": [
            "AdvancedCollectiveOps",
            "CollectiveOpConfig",
            "CommunicationMetrics",
            "CommunicationPattern",
            "CompressionMethod",
            "NetworkTopology",
            "create_collective_ops",
            "create_default_topology",
            "register_comm_hook",
        ],
        "communication_profiling": ["CommunicationProfiler", "create_communication_profiler"],
        "fault_tolerance": ["HardwareHealthMonitor", "HealthState", "Thresholds"],
        "hardware_adapter": ["DeviceMeshOptimizer", "HardwareAdapter", "create_device_mesh_optimizer"],
        "hardware_discovery": [
            "ClusterTopology",
            "DeviceCapability",
            "DeviceInfo",
            "HardwareTopologyManager",
            "HardwareVendor",
            "NodeTopology",
            "RankPlace",
            "ThermalState",
            "create_hardware_manager",
        ],
        "job_management": [
            "ClusterNode",
            "FailureType",
            "JobState",
            "JobStatus",
            "ResourceRequirement",
            "ResourceType",
            "TrainingJobSpec",
        ],
        "network_optimization": [
            "BandwidthAwareScheduler",
            "NetworkTopologyOptimizer",
            "create_adaptive_scheduler",
            "create_bandwidth_scheduler",
            "create_topology_optimizer",
        ],
        "scaling_fault_tolerance": ["FaultToleranceManager", "create_fault_tolerance_manager"],
        "thermal_power_management": [
            "PowerEfficiencyOptimizer",
            "ThermalAwareScheduler",
            "create_thermal_scheduler",
        ],
    },
)
