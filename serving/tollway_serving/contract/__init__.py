"""What the operator writes and the data plane reads. Imported by both; imports no Ray, Kubernetes, SQL or web code."""
