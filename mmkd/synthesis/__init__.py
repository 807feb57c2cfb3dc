"""Engines that write records: programs over vision tools, and what checks them."""
