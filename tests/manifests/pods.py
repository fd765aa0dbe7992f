"""What Kubernetes' Pod Security Standard ``restricted`` requires of a pod, and the pods and variables of objects."""

from __future__ import annotations

from tests.manifests.schemas import Object

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def find_pods(objects: list[Object]) -> list[Object]:
    """The pods that Deployments and Jobs start."""
    return [one["spec"]["template"]["spec"] for one in objects if one["kind"] in ("Deployment", "Job")]


def read_environment(container: Object) -> dict[str, str]:
    """The variables of a container; each is set once."""
    names = [one["name"] for one in container["env"]]
    assert len(names) == len(set(names))
    return {one["name"]: one["value"] for one in container["env"]}


def check_restricted(pod: Object) -> None:
    """Fail unless a pod fulfils the standard, reads no token of the cluster, and has limits."""
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for volume in pod["volumes"]:
        assert volume.keys() - {"name"} <= VOLUMES
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        check_container(container)
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}


def check_container(container: Object) -> None:
    """Fail unless a container fulfils the standard, and writes into its volumes only."""
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
