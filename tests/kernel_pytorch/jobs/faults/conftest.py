from tests.cluster.slurm.conftest import reset_clusters, slurm_cluster, slurm_hosts  # noqa: F401
