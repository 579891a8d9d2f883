"""iii-registry-oci: the hook implementations of this distribution."""
