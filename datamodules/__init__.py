"""Datasets as LightningDataModules that yield core.contracts.FaceBatch."""
