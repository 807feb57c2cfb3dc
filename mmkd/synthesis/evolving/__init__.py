"""MMEvol (Luo et al. 2024, arXiv 2409.05840): questions on images that grow in rounds, each version checked."""
