"""Pure builders, called by `reconcile`: from what was observed to what should exist. No clients, no clock, no logs."""
