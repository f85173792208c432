"""The Kubernetes API and the pods of this node."""
