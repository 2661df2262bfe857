"""Every order of the steps of some processes that share a store."""
