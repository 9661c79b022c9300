"""The evaluation program and what it needs: features, protocols, reports per dataset, comparisons."""
